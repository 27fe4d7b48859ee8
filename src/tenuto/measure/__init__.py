"""What every bench measures with: speed, devices, places to write to, and going on where one stopped."""
