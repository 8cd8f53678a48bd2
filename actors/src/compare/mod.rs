//! Comparisons of arms over seeds: an experiment's file, its cells, which are ordinary runs, and what their results say.

pub mod cell;
pub mod cost;
pub mod curves;
pub mod evaluations;
pub mod experiment;
pub mod items;
pub mod judge;
pub mod key;
pub mod markdown;
pub mod output;
pub mod page;
pub mod plan;
pub mod ready;
pub mod schedule;
pub mod statistics;
pub mod summary;
pub mod tables;
