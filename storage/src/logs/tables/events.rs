//! `events`: what happened.

use crate::logs::row::{Urgency, table};
use crate::logs::words::{Severity, Text};

table! {
    "events": "what happened, with its severity", is_truncated: false,
    urgency: |event| if event.severity >= Severity::Error { Urgency::Now } else { Urgency::Soon };
    /// Something that happened.
    pub struct EventRow {
        /// How much it matters.
        severity: Severity,
        /// What kind: `checkpoint`, `log_repair`, `panic`, ...
        kind: Text,
        /// The stage it concerns.
        stage: Option<Text>,
        /// One line for people.
        message: String,
        /// A JSON object for programs, `{}` if there is nothing to add.
        fields: String,
    }
}
