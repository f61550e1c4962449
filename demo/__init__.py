"""A real grocer's upstream systems, run locally. Nothing imports this package; see its README."""
