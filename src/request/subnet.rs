//! IPv4 networks as `ADDRESS/LENGTH`, and hardware addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::text::stored_as_text;

/// An IPv4 network of 4 to 16 million addresses: /8 to /30.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Subnet {
    /// A /24.
    #[must_use]
    pub(crate) fn of_24(address: Ipv4Addr) -> Self {
        Self { address, prefix: 24 }
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    #[must_use]
    pub(crate) fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & self.mask() == u32::from(self.address)
    }

    /// Whether the two networks share an address.
    #[must_use]
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The last address, which is the broadcast address.
    #[must_use]
    pub(crate) fn last(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) | !self.mask())
    }

    /// The first address that a host may have.
    #[must_use]
    pub(crate) fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + 1)
    }

    /// Whether a host may have this address.
    #[must_use]
    pub(crate) fn is_host(self, ip: Ipv4Addr) -> bool {
        self.contains(ip) && ip != self.address && ip != self.last()
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').ok_or("it has no `/LENGTH`")?;
        let address: Ipv4Addr = address.parse().map_err(|_| format!("`{address}` is not an IPv4 address"))?;
        let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|prefix| is_number && (8..=30).contains(prefix));
        let subnet = Self { address, prefix: prefix.ok_or("the length must be from 8 to 30")? };
        let network = Ipv4Addr::from(u32::from(address) & subnet.mask());
        if network != address {
            return Err(format!("it is not the first address of its network: `{network}/{}`", subnet.prefix));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

stored_as_text!(Subnet);

/// The hardware address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs: Vec<&str> = text.split([':', '-']).collect();
        let mut bytes = [0; 6];
        let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
        if pairs.len() != 6 || !pairs.iter().all(|pair| is_pair(pair)) {
            return Err("it is not of the form `02:42:ac:11:00:02`".into());
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(pair, 16).map_err(|error| error.to_string())?;
        }
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err("it is zero".into()),
            [first, ..] if first & 1 == 1 => Err("it is the address of a group (the first byte is odd)".into()),
            bytes => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

stored_as_text!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_networks() {
        for text in ["10.0.0.0/8", "172.20.0.0/16", "192.168.5.0/24", "10.1.2.4/30"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0.0", "10.0.0.0/7", "10.0.0.0/31", "10.0.0.1/24", "10.0.0.0/+24", "::/64", "10.0.0/24"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        let net: Subnet = "10.1.2.4/30".parse().unwrap();
        let ip = |last| Ipv4Addr::new(10, 1, 2, last);
        assert_eq!((net.first_host(), net.last()), (ip(5), ip(7)));
        assert_eq!((3..=8).filter(|last| net.is_host(ip(*last))).collect::<Vec<_>>(), [5, 6]);
        for (one, other, overlap) in [
            ("10.0.0.0/8", "10.9.0.0/16", true),
            ("10.9.0.0/24", "10.9.1.0/24", false),
            ("10.0.0.0/9", "10.128.0.0/9", false),
        ] {
            let (one, other): (Subnet, Subnet) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((one.overlaps(other), other.overlaps(one)), (overlap, overlap), "{one} {other}");
        }
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!("02:42:AC:11:00:02".parse::<Mac>().unwrap().to_string(), "02:42:ac:11:00:02");
        for text in ["", "02:42", "03:42:ac:11:00:02", "00:00:00:00:00:00", "02:42:ac:11:00:2", "+2:42:ac:11:00:02"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
