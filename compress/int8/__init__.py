"""Static int8: its graph, calibration, tuning, the choice between ways, and the stage that makes it."""
