"""Everything that a node and the SDK share: signed objects, frames, names. Pure."""
