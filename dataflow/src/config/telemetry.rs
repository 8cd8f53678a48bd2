//! `[telemetry]`: how a running run can be watched from outside.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a running run can be watched from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Loopback address and port of this machine at which Prometheus finds `/metrics` while the run
    /// trains, as 127.0.0.1:9464. Port 0: any free one, which is logged. Empty: none.
    pub prometheus: String,
}

impl TelemetryConfig {
    /// What `prometheus` may be.
    pub(super) const ALLOWED: &str = "127.0.0.1:PORT or [::1]:PORT with a port from 0 to 65535, or empty for none";

    /// The address of the metrics; none if they are not asked for.
    ///
    /// # Errors
    /// What is wrong with it: the metrics have no access control, so only this machine may ask for them.
    pub fn address(&self) -> Result<Option<SocketAddr>, &'static str> {
        if self.prometheus.is_empty() {
            return Ok(None);
        }
        match self.prometheus.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Some(address)),
            Ok(_) => Err("is no loopback address"),
            Err(_) => Err("is no address with a port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_accepted() {
        let address = |text: &str| TelemetryConfig { prometheus: text.to_owned() }.address();
        assert_eq!(address(""), Ok(None));
        for good in ["127.0.0.1:9464", "127.0.0.1:0", "127.255.255.254:65535", "[::1]:9464"] {
            assert_eq!(address(good), Ok(Some(good.parse().expect("an address"))), "{good}");
        }
        for elsewhere in ["0.0.0.0:9464", "192.168.0.1:9464", "[::]:9464", "[::ffff:127.0.0.1]:9464", "8.8.8.8:80"] {
            assert_eq!(address(elsewhere), Err("is no loopback address"), "{elsewhere}");
        }
        for broken in [" ", "9464", ":9464", "127.0.0.1", "127.0.0.1:65536", "localhost:9464", "::1:9464", "127.1:9464"]
        {
            assert_eq!(address(broken), Err("is no address with a port"), "{broken}");
        }
    }
}
