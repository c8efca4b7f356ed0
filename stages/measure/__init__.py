"""What is measured of a network: class maps against labels, class maps against each other, and time."""
