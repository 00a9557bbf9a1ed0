"""The weights hub against a server on loopback that speaks the Hub's protocol and can fail."""
