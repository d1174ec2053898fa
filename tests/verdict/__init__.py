"""The verdict: traces, replays of the allocator, and what they are judged by."""
