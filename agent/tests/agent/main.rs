//! The real `berth-agent`, as root, as PID 1 of a PID namespace of its own, driven
//! through its socket. Everything it makes is in a temporary directory and in cgroups
//! below our own; nothing of the host can be reached by its kills.

mod archive;
mod confine;
mod ends;
mod fence;
mod files;
mod interpreter;
mod output;
mod rig;
mod session;
mod tasks;
mod trees;
