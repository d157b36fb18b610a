//! Clusters: the Slurm step that gpurun runs in.
//!
//! The step is recognized by the cgroup of the process, which only root can change, and not by variables, which sudo
//! removes and anybody can set. The variables only add what the cgroup does not say. Nothing here changes the host.
//!
//! ```text
//! v1   /sys/fs/cgroup/{memory,devices}/slurm_NODE/uid_U/job_J/step_S/task_T    in the hierarchies that Slurm uses
//!      /sys/fs/cgroup/{cpuset,freezer}/slurm_NODE/uid_U/job_J/step_S
//! v2   /sys/fs/cgroup/system.slice/slurmstepd.scope/job_J/step_S/user/task_T
//! ```
//!
//! The container's cgroup is below these: under version 1, below the cgroup of gpurun's own process in each of these
//! hierarchies; under version 2, in `user`, because a cgroup with processes cannot have others below it, and because
//! Slurm's device program on `task_T` forbids further programs there.

mod hosts;
mod limits;
mod step;
mod torchrun;

pub(crate) use limits::check_limits;
pub(crate) use step::Step;
pub(crate) use torchrun::torchrun;
