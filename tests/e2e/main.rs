//! End-to-end tests: the program as a user runs it, from the command line to the files that it leaves.

mod bad_images;
mod broken_configs;
mod data;
mod disk;
mod faults;
mod fuzz;
mod golden;
mod kills;
mod labels;
mod layouts;
mod lies;
mod logging;
mod logs;
mod luck;
mod pictures;
mod place;
mod prometheus;
mod readers;
mod refusals;
mod resume;
mod run_dirs;
mod same_weights;
mod shipped;
mod speed;
mod top;
