//! rtnetlink(7), as far as a bridge and its legs need it.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::NetError;
use crate::sys::netns;

/// A socket in the network namespace in which it was opened.
pub(super) struct Netlink(Socket);

impl Netlink {
    pub(super) fn open() -> Result<Self, NetError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        open().map(Self).map_err(|source| NetError::Link { action: "open a netlink socket".into(), source })
    }

    /// Sends a request and waits for the kernel's answer.
    fn ask(&self, action: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetError> {
        let failed = |source| NetError::Link { action: action.to_owned(), source };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = 1;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.0.send(&buffer, 0).map_err(failed)?;
        let (answer, _) = self.0.recv_from_full().map_err(failed)?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))?;
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(_) => Err(failed(error.to_io())),
            },
            _ => Err(failed(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Makes the bridge, if it is not there.
    pub(super) fn bridge(&self, name: &str, ip: Ipv4Addr) -> Result<(), NetError> {
        if netns::index(name) != 0 {
            return Ok(());
        }
        let mut message = LinkMessage::default();
        // A fixed hardware address: without one the bridge takes its smallest leg's, and changes it with every leg.
        let [_, b, c, d] = ip.octets();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(vec![0x02, 0x67, b, c, d, 0x01]),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::StpState(BridgeStpState::Disabled)])),
            ]),
        ];
        let made = self.ask(
            &format!("make the bridge `{name}`"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match made {
            // Another run directory's container was quicker.
            Err(NetError::Link { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Makes a veth pair: one end here, on the bridge; the other in a namespace, under the name `eth0`.
    pub(super) fn veth(&self, name: &str, bridge: u32, namespace: &OwnedFd, hardware: [u8; 6]) -> Result<(), NetError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::Address(hardware.to_vec()),
        ];
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.ask(
            &format!("make the network device `{name}`"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Lets a leg of the bridge get back what it sent. Where bridged packets pass through the packet filter (docker turns that on), a container
    /// that asks for its own published port is answered by the bridge, without ever being routed.
    pub(super) fn hairpin(&self, name: &str) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = netns::index(name);
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ])];
        self.ask(&format!("set the bridge port `{name}`"), RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Removes a device; one that is gone already is no error.
    pub(super) fn remove(&self, name: &str) -> Result<(), NetError> {
        let index = netns::index(name);
        if index == 0 {
            return Ok(());
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.ask(&format!("remove the network device `{name}`"), RouteNetlinkMessage::DelLink(message), 0) {
            Err(NetError::Link { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    pub(super) fn up(&self, index: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.ask("bring a network device up", RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(super) fn address(&self, index: u32, ip: Ipv4Addr, prefix: u8) -> Result<(), NetError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.header.flags = AddressHeaderFlags::Permanent;
        let broadcast = Ipv4Addr::from(u32::from(ip) | (u32::MAX >> prefix));
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(ip)),
            AddressAttribute::Address(IpAddr::V4(ip)),
            AddressAttribute::Broadcast(broadcast),
        ];
        self.ask(
            &format!("give the address {ip} to a network device"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    pub(super) fn default_route(&self, gateway: Ipv4Addr) -> Result<(), NetError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = libc::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
        self.ask("set the default route", RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }
}
