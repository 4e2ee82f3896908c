"""What a user can mend about a conversion."""


class ConvertError(ValueError):
    """A checkpoint cannot be converted as asked."""
