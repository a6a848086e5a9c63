"""Study 11: noise assignment on images of drawn scenes, two small networks, many arms, paired seeds."""
