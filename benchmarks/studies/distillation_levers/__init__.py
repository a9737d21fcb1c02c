"""What each part of a student's distillation is worth: one change of a student or of its training at a time."""
