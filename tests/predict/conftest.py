"""Each test starts with nothing compiled, as those of the doors do."""

from tests.doors.conftest import fresh_dynamo

__all__ = ["fresh_dynamo"]
