"""What a run reports as it goes: `writers` to files and trackers, `progress` to a terminal."""
