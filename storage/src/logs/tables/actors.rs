//! `actors`: cumulative counters of every worker of a stage.

use crate::logs::row::table;
use crate::logs::words::Text;

table! {
    "actors": "counters and queues of every worker of a stage", is_truncated: false;
    /// Counters of one worker; all but those of the queue, `utilization` and `lag` are cumulative.
    pub struct ActorRow {
        /// Stage: `load`, `score`, `encoder`, `evaluator`, `policy`, `log`.
        stage: Text,
        /// Worker within the stage, from 0.
        instance: i16,
        /// Items done.
        items: i64,
        /// Bytes of the items done.
        bytes: i64,
        /// Seconds of work.
        busy_s: f64,
        /// Seconds waiting for input.
        wait_in_s: f64,
        /// Seconds waiting for room in an output.
        wait_out_s: f64,
        /// Items in the input queues now.
        queue_len: i32,
        /// Capacity of the input queues.
        queue_cap: i32,
        /// Bytes in the input queues now.
        queue_bytes: i64,
        /// Share of the time since the last sample spent busy, 0..1.
        utilization: f32,
        /// Restarts after a panic.
        restarts: i32,
        /// Of the stage `score`: outer iterations by which the policy in use was stale, as last measured (the metric
        /// `policy_lag`). 0 for the other stages.
        lag: i32,
        /// Seconds for which a device with a clock of its own, as a GPU, worked for the worker; null where the host
        /// computes, and in rows of before version 1.1.
        device_s: Option<f64>,
    }
}
