"""Told to stop: nothing new is taken, what has begun is finished, streams are ended, and the exit code is 0."""

import pytest

pytestmark = pytest.mark.services
