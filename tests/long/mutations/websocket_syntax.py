"""Single mistakes in the section WEBSOCKET SYNTAX of pooler.py.  (No claims.)"""

from __future__ import annotations

from tests.long.mutations.apply import Rows

# fmt: off
ROWS: Rows = (
    ("half_a_character", "A text ends with a whole character.",
     "is_utf8", "decoder.decode(b'', final=True)", "",
     "websocket_memory::text_is_judged_in_slices"),
    ("text_held_as_str", "The library holds bytes, and no text.",
     "_with_binary_frames",
     "_TEXT ^ _BINARY",
     "0",
     "websocket_bounds::the_meter_counts_the_same_in_any_pieces"),
    ("frames_at_once", "A piece of many frames is handled in steps.",
     "FrameMeter.feed", "frame_count < FRAMES_AT_ONCE", "frame_count <= FRAMES_AT_ONCE",
     "websocket_bounds::so_many_frames_are_passed_on_at_once"),
    ("frame_count", "A message has so many frames.",
     "FrameMeter._begin", "self.frames_max", "self.frames_max + 1",
     "websocket_bounds::a_message_comes_in_so_many_frames_and_no_more"),
    ("frame_bytes", "A message has so many bytes.",
     "FrameMeter._begin", "self.bytes_pending + self._left > self.bytes_max",
     "self.bytes_pending + self._left >= self.bytes_max",
     "websocket_bounds::a_clients_message_has_so_many_bytes_and_no_more"),
)
