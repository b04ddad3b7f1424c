"""Devices, disk, signals, configuration, and the words of messages."""
