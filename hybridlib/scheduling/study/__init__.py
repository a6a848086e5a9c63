"""Study 08 made of pieces that are remembered, and what they say about the published claims."""
