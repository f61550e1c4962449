"""Tables of other lakes."""
