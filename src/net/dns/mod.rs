//! The DNS server of containers on named networks, at 127.0.0.11 in each container's network.
//!
//! ```text
//! container's network                                          host's network
//! client ─ 127.0.0.11:53 ═ nft rewrites the port ═ UDP and TCP socket ─ gpurun resolve ─ the host's name servers
//!                                                                           │
//!                                                     /run/gpurun/net/ID.names (descriptor)
//! ```
//!
//! The supervisor opens both sockets in the container's network, on ports that the kernel chooses, and the packet
//! filter of that network rewrites port 53 to them. So port 53 stays free for the container's own programs. Sockets stay
//! in the network in which they were opened: the process itself runs in the host's network and reaches the host's name
//! servers from there.
//!
//! The process parses packets that the container chooses. It is gpurun's executable in a process of its own
//! (`gpurun resolve`), as user 65534, without capabilities, and with a filter that leaves it only sockets and
//! memory (`sandbox`). It holds its two sockets, the names and one end of a socket pair. It ends with the supervisor
//! (PDEATHSIG, and the end of the socket pair) and with the container's [`Resolver`]. The supervisor keeps the sockets
//! open, so queries wait while it starts a resolver that died again.
//!
//! A container's names are in a file that every process that changes a lease writes ([`table`]). The resolver reads it
//! with each query, so it never wakes up without one.

mod exchange;
mod framed;
mod query;
mod redirect;
mod sandbox;
mod server;
mod start;
pub(super) mod table;

pub(super) use redirect::ADDRESS;
pub(crate) use server::main;
pub(crate) use start::{RESOLVE, Resolver};
