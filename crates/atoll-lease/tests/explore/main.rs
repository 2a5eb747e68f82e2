//! Every order of events in a small world: three clients, two inodes, one authority.

mod explorer;
mod mutations;
mod operations;
mod scripts;
mod world;
