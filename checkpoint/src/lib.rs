//! What a checkpoint is made of. Worker and coordinator share it, and nothing else of each other.
//!
//! A workspace becomes a **manifest** (what there is: names, kinds, modes, times) and **content** (all files' bytes,
//! one behind the other). Both are cut into **pieces** where the bytes themselves say so (FastCDC), so that a change
//! moves only the cuts around it and the rest is found in the store by its hash: a second checkpoint costs what has
//! changed. Each piece is compressed alone, and its name is the BLAKE3 hash of what it is uncompressed. So every
//! read can be checked, a piece can't be replaced by another, and the same piece is stored once.
//!
//! One root piece lists the manifest's pieces; its hash is all that has to be remembered of a checkpoint.
//!
//! Rejected: a backup library (restic's format in `rustic_core`), which wants to own the walk over the files and the
//! store, on one machine. Here the files are read by the agent inside the sandbox, cut on the worker, and stored by
//! the coordinator, and each of the three distrusts the one before it. What cutting, hashing and compressing need is
//! taken from libraries.

mod manifest;
mod piece;

pub use manifest::{
    Bad, ManifestParts, add_piece, check_manifest, pack_manifest, unpack_manifest, unpack_root,
};
pub use piece::{Cut, Cutter, Digest, PIECE_MAX, open, seal};
