"""What the exercises' notebooks export, and the checks of what readers write."""
