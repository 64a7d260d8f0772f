"""Measurements that anyone can repeat; see docs/speed.md."""
