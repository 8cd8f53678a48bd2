//! Looking at a run, at work or ended: progress, dashboards, the timeline, Prometheus.

pub mod progress;
pub mod prometheus;
pub mod stage_times;
pub mod timeline;
pub mod top;
