//! What the test programs in tests/ and the fuzz targets in fuzz/ use of this crate.
//!
//! The crate is a program: no other module is public, so that the compiler finds dead code. This list is the only exception. An item that no
//! test program uses any more must leave it.

pub mod cgroup {
    pub use crate::cgroup::{Cgroup, Host};
}

pub mod cli {
    pub use crate::cli::command_names;
}

pub mod gpu {
    pub mod cdi {
        pub use crate::gpu::cdi::Spec;
    }

    pub mod ldcache {
        pub use crate::gpu::ldcache::{Entry, NATIVE, parse, with};
    }
}

pub mod hook {
    pub use crate::hook::{Circumstances, Definition};
}

pub mod image {
    pub use crate::image::{Document, ImageConfig, ImageDocument, Platform, digest_of};
}

pub mod layer {
    pub use crate::layer::{Entry, Kind, Merger, Scanner, Tree};

    pub mod erofs {
        pub use crate::layer::erofs::write;
    }
}

pub mod names {
    pub use crate::names::{Digest, Reference};
}

pub mod net {
    pub use crate::net::{NetError, Network, Request, reconcile, repair, setup, teardown};
    pub use crate::network::Networks;
}

pub mod report {
    pub use crate::report::Report;
}

pub mod request {
    pub use crate::request::{Attachment, GpuRequest, NetworkMode, PortSpec};
}

pub mod rootfs {
    pub use crate::rootfs::{Overlay, overlay};
}

pub mod runtime {
    pub use crate::runtime::{
        CreateRequest, Created, EXEC_HELPER, ExecChild, ExecRequest, INIT_PAYLOAD, RuntimeError, Stdio, create, exec,
        exec_helper_main,
    };
}

pub mod spec {
    pub use crate::spec::{Capabilities, DeviceRule, Limits, Process, Rlimit};

    pub mod seccomp {
        pub use crate::spec::seccomp::Filter;
    }
}

pub mod sys {
    pub mod exe {
        pub use crate::sys::exe::{ensure_sealed, is_sealed};
    }

    pub mod netns {
        pub use crate::sys::netns::{create, inside};
    }

    pub mod process {
        pub use crate::sys::process::{
            Fork, children, default_signals, exit_now, fork, ignore_signal, open_pidfd, wait_pid_gone, wait_pidfd,
        };
    }

    pub mod pty {
        pub use crate::sys::pty::set_window_size;
    }

    pub mod seccomp {
        pub use crate::sys::seccomp::Instruction;
    }

    pub mod xattr_read {
        pub use crate::sys::xattr_read::all;
    }
}

pub mod transport {
    pub use crate::transport::{Source, open_archive};
}
