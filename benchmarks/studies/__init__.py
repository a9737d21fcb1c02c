"""What the parts of colorpress are worth: longer measurements that decide how it works, not part of any run."""
