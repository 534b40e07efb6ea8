"""What the planned language pairs need, and what a step costs, on slices of 8 to 256 chips."""
