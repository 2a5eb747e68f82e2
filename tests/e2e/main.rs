//! End to end, as a user would: the real binary, real FUSE mounts, real
//! processes that are killed. Needs root and `/dev/fuse`; fails without them.

mod bad_input;
mod bench;
mod care;
mod clocks;
mod coherence;
mod cold;
mod crash;
mod directory_quotas;
mod encryption;
mod events;
mod exerciser;
mod faulty_s3;
mod fuzz;
mod handover;
mod harness;
mod journal;
mod keeper;
mod kills;
mod leases;
mod lifecycle;
mod links;
mod locks;
mod mounting;
mod moving;
mod programs;
mod queues;
mod quota;
mod serving;
mod snapshot_directory;
mod snapshots;
mod store_faults;
mod suspended;
mod taken_over;
mod trash;
mod two_worlds;
