"""Images: how they are decoded and sorted, their features on disk, the seeded textures, public data sets by name."""
