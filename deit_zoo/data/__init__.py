"""Images: folders, the Hub's data sets, transforms, digits."""
