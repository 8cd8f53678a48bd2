//! Wall-clock time: stamps for log rows and UTC text for names and records.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The moment a row was made, taken by its producer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stamp {
    /// Microseconds since 1970-01-01 UTC.
    pub ts_us: i64,
    /// Seconds of running time since the run began, summed over its segments.
    pub wall_s: f64,
}

/// A clock shared by all producers of one process; copy it freely.
///
/// Stamps never go backwards within a process, even when the system's clock is set.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    started_us: i64,
    offset_s: f64,
}

impl Clock {
    /// A clock that starts now, for a new run.
    #[must_use]
    pub fn start() -> Self {
        Self::resume(0.0)
    }

    /// A clock that starts now, for a run that has already been running for `offset_s` seconds.
    #[must_use]
    pub fn resume(offset_s: f64) -> Self {
        Self { started: Instant::now(), started_us: unix_us(), offset_s }
    }

    /// The present moment.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let elapsed = self.started.elapsed();
        Stamp {
            ts_us: self.started_us + i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX / 2),
            wall_s: self.offset_s + elapsed.as_secs_f64(),
        }
    }

    /// Seconds of running time since the run began.
    #[must_use]
    pub fn wall_s(&self) -> f64 {
        self.stamp().wall_s
    }
}

/// Microseconds since 1970-01-01 UTC, by the system's clock.
#[must_use]
pub fn unix_us() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

/// A calendar date and time in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    micros: i64,
}

/// Days to a proleptic Gregorian date, after H. Hinnant, "chrono-compatible low-level date algorithms".
fn civil(ts_us: i64) -> Civil {
    let seconds = ts_us.div_euclid(1_000_000);
    let day_number = seconds.div_euclid(86_400) + 719_468;
    let era = day_number.div_euclid(146_097);
    let day_of_era = day_number.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let in_day = seconds.rem_euclid(86_400);
    Civil {
        year: era * 400 + year_of_era + i64::from(month <= 2),
        month,
        day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
        hour: in_day / 3_600,
        minute: in_day / 60 % 60,
        second: in_day % 60,
        micros: ts_us.rem_euclid(1_000_000),
    }
}

/// `2026-11-23T22:44:12.123456Z`, from microseconds since 1970 (UTC).
#[must_use]
pub fn rfc3339(ts_us: i64) -> String {
    let c = civil(ts_us);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", c.year, c.month, c.day, c.hour, c.minute, c.second, c.micros)
}

/// `20261123-224412`, from microseconds since 1970 (UTC): sorts by time.
#[must_use]
pub fn compact(ts_us: i64) -> String {
    let c = civil(ts_us);
    format!("{:04}{:02}{:02}-{:02}{:02}{:02}", c.year, c.month, c.day, c.hour, c.minute, c.second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(compact(1_795_473_852_000_000), "20261123-224412");
    }

    #[test]
    fn extreme_moments_do_not_panic() {
        for ts_us in [i64::MIN, i64::MAX, i64::MIN + 1] {
            assert!(rfc3339(ts_us).ends_with('Z'));
        }
    }

    #[test]
    fn stamps_do_not_go_back() {
        let clock = Clock::resume(5.0);
        let mut last = clock.stamp();
        for _ in 0..1_000 {
            let next = clock.stamp();
            assert!(next.ts_us >= last.ts_us && next.wall_s >= last.wall_s && next.wall_s >= 5.0);
            last = next;
        }
    }
}
