//! Free ports of the loopback.

use std::net::{Ipv4Addr, TcpListener};

use super::error::{Error, Result};

/// `N` different ports that are free now. Somebody else may take one before the server does; the caller then
/// asks again.
pub(super) fn free<const N: usize>() -> Result<[u16; N]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr().map(|a| (a.port(), l)));
    // All are held until the last is bound, or the same port could come twice.
    let held: Vec<_> = (0..N).map(|_| bind()).collect::<Result<_, _>>().map_err(Error::NoPort)?;
    Ok(std::array::from_fn(|n| held[n].0))
}

/// Whether a server's log says that its port was taken.
pub(super) fn taken(log: &str) -> bool {
    log.to_ascii_lowercase().contains("address already in use")
}

#[cfg(test)]
mod tests {
    #[test]
    fn free_ports_differ() {
        let [a, b, c] = super::free().unwrap();
        assert!(a != b && b != c && a != c);
    }
}
