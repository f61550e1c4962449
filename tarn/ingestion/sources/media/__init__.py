"""Pictures and sounds, catalogued where they lie."""
