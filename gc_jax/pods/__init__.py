"""Does a recipe fit a pod? Compiled for devices that are not here."""
