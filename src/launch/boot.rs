//! Which containers start when the host boots: docker's restart policies, as its daemon applies them when it starts.

use crate::record::{Record, State};
use crate::request::RestartPolicy;

/// Whether a container starts at this boot. Only a container whose last run was before the boot does, so a second call
/// in the same boot starts nothing that a user has stopped since.
#[must_use]
pub(crate) fn starts_at_boot(record: &Record, state: &State, boot: Option<&str>) -> bool {
    let is_of_earlier_boot = boot.is_some() && state.boot_id.is_some() && state.boot_id.as_deref() != boot;
    let wanted = match record.request.restart {
        // As in docker, also one that a user has stopped.
        RestartPolicy::Always => true,
        RestartPolicy::UnlessStopped => !state.stopped_by_user,
        RestartPolicy::No | RestartPolicy::OnFailure { .. } => false,
    };
    wanted && !record.step && state.has_run() && is_of_earlier_boot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Phase;

    #[test]
    fn policies_apply_to_containers_of_an_earlier_boot() {
        let mut record = crate::fixture::record(&"a".repeat(64), "web");
        let ended = State { phase: Phase::Exited, boot_id: Some("one".into()), started: Some(1), ..State::default() };
        let stopped = State { stopped_by_user: true, ..ended.clone() };
        let running = State { phase: Phase::Running, ..ended.clone() };
        let created = State { kept: true, ..State::default() };
        for (policy, expected) in [
            ("always", [true, true, true, false]),
            ("unless-stopped", [true, false, true, false]),
            ("on-failure", [false; 4]),
            ("no", [false; 4]),
        ] {
            record.request.restart = policy.parse().unwrap();
            let starts = |state, boot| starts_at_boot(&record, state, boot);
            let all = [&ended, &stopped, &running, &created];
            assert_eq!(all.map(|state| starts(state, Some("two"))), expected, "{policy}");
            assert_eq!(all.map(|state| starts(state, Some("one"))), [false; 4], "{policy}: the same boot");
            assert_eq!(all.map(|state| starts(state, None)), [false; 4], "{policy}: an unknown boot");
        }
        (record.request.restart, record.step) = (RestartPolicy::Always, true);
        assert!(!starts_at_boot(&record, &ended, Some("two")), "a step of a build");
    }
}
