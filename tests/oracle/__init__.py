"""The formulas held against the dry run, configuration by configuration."""
