//! The variables with which PyTorch's processes find each other (`--torchrun-env`), from those of a Slurm task.

use super::hosts;
use crate::report::{EXIT_USAGE, Explain};

/// The ports for the processes of a job. The number of the job decides, so that all of its nodes agree. They are above the
/// ports that the kernel gives to outgoing connections (up to 60999).
const FIRST_PORT: u64 = 61_000;
const PORTS: u64 = 4536;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TorchrunError {
    #[error("cannot use `--torchrun-env`: the variable `{0}` of a Slurm task is not set")]
    Missing(&'static str),
    #[error("cannot use `--torchrun-env`: `{name}={value}` is not valid", value = value.escape_debug())]
    Invalid { name: &'static str, value: String },
}

impl Explain for TorchrunError {
    fn hint(&self) -> Option<String> {
        Some("start each process as a task of Slurm: `srun gpurun run --torchrun-env …`".into())
    }
    fn exit_code(&self) -> u8 {
        EXIT_USAGE
    }
}

/// Returns the variables of `torchrun` for the task whose variables `lookup` returns.
pub(crate) fn torchrun(lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>, TorchrunError> {
    let number = |name: &'static str| -> Result<u64, TorchrunError> {
        let value = lookup(name).ok_or(TorchrunError::Missing(name))?;
        value.parse().map_err(|_| TorchrunError::Invalid { name, value })
    };
    const NODES: &str = "SLURM_STEP_NODELIST";
    let nodes = lookup(NODES).ok_or(TorchrunError::Missing(NODES))?;
    let address = hosts::first(&nodes).ok_or(TorchrunError::Invalid { name: NODES, value: nodes })?;
    let port = FIRST_PORT + number("SLURM_JOB_ID")? % PORTS;
    let all = [
        ("MASTER_ADDR", address),
        ("MASTER_PORT", port.to_string()),
        ("WORLD_SIZE", number("SLURM_NTASKS")?.to_string()),
        ("RANK", number("SLURM_PROCID")?.to_string()),
        ("LOCAL_RANK", number("SLURM_LOCALID")?.to_string()),
    ];
    Ok(all.map(|(name, value)| (name.to_owned(), value)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_variables_become_torchruns() {
        let slurm = |name: &str| {
            let value = match name {
                "SLURM_STEP_NODELIST" => "n[3-4]",
                "SLURM_JOB_ID" => "4537",
                "SLURM_NTASKS" => "16",
                "SLURM_PROCID" => "9",
                "SLURM_LOCALID" => "1",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let all: Vec<String> = torchrun(slurm).unwrap().iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(all, ["MASTER_ADDR=n3", "MASTER_PORT=61001", "WORLD_SIZE=16", "RANK=9", "LOCAL_RANK=1"]);
        let without = |name: &str| slurm(name).filter(|_| name != "SLURM_PROCID");
        assert_eq!(torchrun(without), Err(TorchrunError::Missing("SLURM_PROCID")));
        let wrong = |name: &str| if name == "SLURM_NTASKS" { Some("x".into()) } else { slurm(name) };
        assert!(torchrun(wrong).unwrap_err().to_string().contains("`SLURM_NTASKS=x`"));
        assert_eq!(torchrun(|_| None), Err(TorchrunError::Missing("SLURM_STEP_NODELIST")));
    }
}
