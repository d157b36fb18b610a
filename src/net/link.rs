//! A minimal rtnetlink(7) client for the bridge and its ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

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
use crate::request::Mac;
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

    /// Sends a request, and waits until the kernel acknowledges it.
    fn ask(&self, action: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetError> {
        let failed = |source| NetError::Link { action: action.to_owned(), source };
        match self.exchange(message, NLM_F_ACK | flags).map_err(failed)? {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(_) => Err(failed(error.to_io())),
            },
            _ => Err(failed(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Sends a request and receives one answer.
    fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = 1;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.0.send(&buffer, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map(|answer| answer.payload)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }

    /// Creates the bridge if it does not exist.
    pub(super) fn bridge(&self, name: &str, ip: Ipv4Addr) -> Result<(), NetError> {
        if netns::index(name) != 0 {
            return Ok(());
        }
        let mut message = LinkMessage::default();
        // Set a fixed hardware address. Otherwise the bridge takes the smallest address of its ports, which changes
        // with every port.
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
            &format!("create the bridge `{name}`"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match made {
            // A container of another run directory has just created it.
            Err(NetError::Link { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Creates a veth pair: one end here, on the bridge, and the other in a namespace, with the name `inner`.
    pub(super) fn veth(
        &self,
        name: &str,
        bridge: u32,
        namespace: BorrowedFd<'_>,
        inner: &str,
        hardware: Mac,
    ) -> Result<(), NetError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(inner.to_owned()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::Address(hardware.0.to_vec()),
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
            &format!("create the network device `{name}`"),
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Lets a port of the bridge send packets back to where they came from. If bridged packets pass through the packet
    /// filter (docker turns that on), a container that connects to its own published port is answered by the bridge
    /// without any routing.
    pub(super) fn hairpin(&self, name: &str) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = netns::index(name);
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ])];
        self.ask(&format!("set the bridge port `{name}`"), RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Connects a device to the bridge again.
    pub(super) fn attach(&self, index: u32, bridge: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Controller(bridge)];
        self.ask("add a network device to the bridge", RouteNetlinkMessage::SetLink(message), 0)
    }

    /// The index of the bridge that a device belongs to, or `None` without a bridge or without the device.
    pub(super) fn bridge_of(&self, index: u32) -> Result<Option<u32>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let failed = |source| NetError::Link { action: "read a network device".into(), source };
        let answer = self.exchange(RouteNetlinkMessage::GetLink(message), 0).map_err(failed)?;
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer else { return Ok(None) };
        Ok(link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(bridge) => Some(*bridge),
            _ => None,
        }))
    }

    /// Removes a device. A device that is already gone is not an error.
    pub(super) fn remove(&self, index: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.ask("remove a network device", RouteNetlinkMessage::DelLink(message), 0) {
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
            &format!("assign the address {ip} to a network device"),
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
