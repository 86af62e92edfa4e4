"""Surgery: modules that are added to pre-trained towers, train there, and fold away again."""
