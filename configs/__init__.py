"""The configuration schema and the YAML presets."""
