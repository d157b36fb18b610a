//! Parses `RUN --mount=…`. Pure.

use super::parse::{Flag, Problem};
use crate::request::{Mounted, check_destination, csv_fields};

/// One mount of a `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mount {
    /// A directory that is kept between builds.
    Cache {
        id: String,
        target: String,
        sharing: Sharing,
        mode: u32,
        owner: (u32, u32),
        from: Option<String>,
        source: String,
        read_only: bool,
    },
    /// A path of the context, a stage or an image.
    Bind {
        from: Option<String>,
        source: String,
        target: String,
        writable: bool,
    },
    /// A secret from the command line, as a file or an environment variable.
    Secret {
        id: String,
        target: Option<String>,
        env: Option<String>,
        mode: u32,
        owner: (u32, u32),
        required: bool,
    },
    Tmpfs {
        target: String,
        size: Option<u64>,
    },
    /// The socket of an SSH agent.
    Ssh {
        id: String,
        /// `None` is a directory of BuildKit's with a number.
        target: Option<String>,
        mode: u32,
        owner: (u32, u32),
        required: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    Shared,
    /// For one build at a time. A second build gets its own directory.
    Private,
    /// For one build at a time. A second build waits.
    Locked,
}

/// Parses the value of a `--mount` flag. Variables must already be expanded.
pub(super) fn parse(flag: &Flag, text: &str, workdir: &dyn Fn(&str) -> String) -> Result<Mount, Problem> {
    let mut fields = Fields::read(flag, text)?;
    let kind = fields.take(&["type"]).unwrap_or_else(|| "bind".into());
    let mount = match kind.as_str() {
        "cache" => fields.cache(workdir)?,
        "bind" => fields.bind(workdir)?,
        "secret" => fields.secret(workdir)?,
        "ssh" => {
            let target = fields.take(&["target", "dst", "destination"]);
            Mount::Ssh {
                id: fields.take(&["id"]).unwrap_or_else(|| "default".into()),
                target: target.map(|target| fields.allowed(workdir(&target))).transpose()?,
                mode: fields.number("mode", 0o600, 8)?,
                owner: fields.owner()?,
                required: fields.truth(&["required"])?.unwrap_or(false),
            }
        }
        "tmpfs" => {
            let target = fields.target(workdir)?;
            let size = fields.take(&["size"]).map(|size| {
                crate::units::parse_memory(&size)
                    .map_err(|_| fields.bad(format!("has `size={size}`, which is not a size")))
            });
            Mount::Tmpfs { target, size: size.transpose()? }
        }
        other => return Err(fields.bad(format!("has the unknown type `{other}`"))),
    };
    match fields.all.iter().find(|(key, _)| !fields.used.contains(&key.as_str())) {
        Some((key, _)) => Err(fields.bad(format!("has the field `{key}`, which a {kind} mount does not accept"))),
        None => Ok(mount),
    }
}

/// The `key=value` fields of one mount, and the keys that the parser has read.
struct Fields<'a> {
    flag: &'a Flag,
    all: Vec<(String, Option<String>)>,
    used: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn read(flag: &'a Flag, text: &str) -> Result<Self, Problem> {
        let mut fields = Self { flag, all: Vec::new(), used: Vec::new() };
        let texts = csv_fields(text).map_err(|why| fields.bad(format!("cannot be parsed: {why}")))?;
        fields.all = texts
            .iter()
            .filter(|text| !text.is_empty())
            .map(|field| match field.split_once('=') {
                Some((key, value)) => (key.to_ascii_lowercase(), Some(value.to_owned())),
                None => (field.to_ascii_lowercase(), None),
            })
            .collect();
        Ok(fields)
    }

    fn bad(&self, what: String) -> Problem {
        Problem::FlagValue { instruction: "RUN", flag: self.flag.name.clone(), what }
    }

    /// The last value under one of these names. A name without a value means `true`.
    fn take(&mut self, names: &[&'static str]) -> Option<String> {
        self.used.extend_from_slice(names);
        let found = self.all.iter().rev().find(|(key, _)| names.contains(&key.as_str()));
        found.map(|(_, value)| value.clone().unwrap_or_else(|| "true".into()))
    }

    fn target(&mut self, workdir: &dyn Fn(&str) -> String) -> Result<String, Problem> {
        let target = self.take(&["target", "dst", "destination"]);
        let target = target.map(|target| workdir(&target)).ok_or_else(|| self.bad("needs a `target`".into()))?;
        self.allowed(target)
    }

    /// Applies the same check as `-v`: the runtime populates some destinations itself.
    fn allowed(&self, target: String) -> Result<String, Problem> {
        match check_destination(std::path::Path::new(&target), Mounted::Other) {
            Ok(()) => Ok(target),
            Err(error) => Err(self.bad(format!("is refused: {error}"))),
        }
    }

    fn source(&mut self) -> String {
        self.take(&["source", "src"]).unwrap_or_else(|| "/".into())
    }

    fn number(&mut self, name: &'static str, default: u32, radix: u32) -> Result<u32, Problem> {
        let Some(value) = self.take(&[name]) else { return Ok(default) };
        u32::from_str_radix(&value, radix).map_err(|_| self.bad(format!("has a `{name}` that is not a number")))
    }

    fn truth(&mut self, names: &[&'static str]) -> Result<Option<bool>, Problem> {
        match self.take(names).as_deref() {
            None => Ok(None),
            Some("false" | "0") => Ok(Some(false)),
            Some("true" | "1" | "") => Ok(Some(true)),
            Some(other) => Err(self.bad(format!("has `{}={other}`, which is neither true nor false", names[0]))),
        }
    }

    fn owner(&mut self) -> Result<(u32, u32), Problem> {
        Ok((self.number("uid", 0, 10)?, self.number("gid", 0, 10)?))
    }

    fn cache(&mut self, workdir: &dyn Fn(&str) -> String) -> Result<Mount, Problem> {
        let target = self.target(workdir)?;
        let sharing = match self.take(&["sharing"]).as_deref() {
            None | Some("shared") => Sharing::Shared,
            Some("private") => Sharing::Private,
            Some("locked") => Sharing::Locked,
            Some(other) => return Err(self.bad(format!("has `sharing={other}`: use `shared`, `private` or `locked`"))),
        };
        let mut id = self.take(&["id"]).unwrap_or_else(|| target.clone());
        let (mode, owner) = (self.number("mode", 0o755, 8)?, self.owner()?);
        let (from, source) = (self.take(&["from"]), self.source());
        // As in BuildKit, a cache that begins in another state is another cache. Otherwise the first step to use it
        // would decide who may write to it.
        if (mode, owner) != (0o755, (0, 0)) || from.is_some() {
            id = format!("{id}\0{mode:o} {owner:?} {from:?} {source}");
        }
        Ok(Mount::Cache {
            id,
            sharing,
            mode,
            owner,
            from,
            source,
            read_only: self.truth(&["ro", "readonly"])?.unwrap_or(false),
            target,
        })
    }

    fn bind(&mut self, workdir: &dyn Fn(&str) -> String) -> Result<Mount, Problem> {
        let target = self.target(workdir)?;
        let read_only = self.truth(&["ro", "readonly"])?;
        let writable = self.truth(&["rw", "readwrite"])?.unwrap_or(read_only == Some(false));
        Ok(Mount::Bind { from: self.take(&["from"]), source: self.source(), target, writable })
    }

    fn secret(&mut self, workdir: &dyn Fn(&str) -> String) -> Result<Mount, Problem> {
        let (target, env) = (self.take(&["target", "dst", "destination"]), self.take(&["env"]));
        let last_name = target.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
        let id = self.take(&["id", "source", "src"]).or(last_name).ok_or_else(|| self.bad("needs an `id`".into()))?;
        let target = target.map(|target| self.allowed(workdir(&target))).transpose()?;
        Ok(Mount::Secret {
            target: match (target, &env) {
                (Some(target), _) => Some(target),
                // The secret is passed in the environment only.
                (None, Some(_)) => None,
                (None, None) => Some(format!("/run/secrets/{id}")),
            },
            env,
            mode: self.number("mode", 0o400, 8)?,
            owner: self.owner()?,
            required: self.truth(&["required"])?.unwrap_or(false),
            id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        let flag = Flag { name: "mount".into(), value: None };
        parse(&flag, text, &|path| if path.starts_with('/') { path.into() } else { format!("/work/{path}") })
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn types_and_defaults() {
        let Ok(Mount::Cache { id, target, sharing, mode, .. }) =
            mount("type=cache,target=/root/.cache/pip,sharing=locked")
        else {
            panic!("a cache")
        };
        assert_eq!(
            (id.as_str(), target.as_str(), sharing, mode),
            ("/root/.cache/pip", "/root/.cache/pip", Sharing::Locked, 0o755)
        );
        let id = |text: &str| match mount(&format!("type=cache,target=/c{text}")) {
            Ok(Mount::Cache { id, .. }) => id,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!((id(""), id(",uid=0,mode=755"), id(",id=x")), ("/c".into(), "/c".into(), "x".into()));
        let ids = ["", ",uid=10", ",gid=10", ",mode=777", ",from=base", ",from=base,source=/x"].map(id);
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len(), "{ids:?}");
        assert_eq!(
            mount("target=x,rw,from=base,source=/y"),
            Ok(Mount::Bind {
                from: Some("base".into()),
                source: "/y".into(),
                target: "/work/x".into(),
                writable: true
            })
        );
        let Ok(Mount::Secret { target, env, mode, .. }) = mount("type=secret,id=key") else { panic!("a secret") };
        assert_eq!((target.as_deref(), env, mode), (Some("/run/secrets/key"), None, 0o400));
        assert!(matches!(mount("type=secret,id=key,env=KEY"), Ok(Mount::Secret { target: None, .. })));
        let Ok(Mount::Cache { target, .. }) = mount("type=cache,\"target=/a,b\"") else { panic!("a quoted comma") };
        assert_eq!(target, "/a,b");
        assert_eq!(mount("type=tmpfs,dst=/t,size=1m"), Ok(Mount::Tmpfs { target: "/t".into(), size: Some(1 << 20) }));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, want) in [
            ("type=agent", "the unknown type `agent`"),
            ("type=cache", "needs a `target`"),
            ("type=cache,target=/x,sharing=all", "sharing=all"),
            ("type=cache,target=/x,mode=9", "`mode` that is not a number"),
            ("type=tmpfs,target=/x,size=much", "size=much"),
            ("type=bind,target=/x,color=red", "the field `color`, which a bind mount does not accept"),
            ("type=secret", "needs an `id`"),
            ("type=bind,target=/x,rw=maybe", "neither true nor false"),
            ("type=bind,target=/dev", "the runtime fills the container's /dev"),
            ("type=cache,target=/proc/sys", "in the container's own /proc"),
            ("type=secret,id=k,target=/dev/pts/x", "the runtime makes this file"),
            ("type=tmpfs,target=/sys", "the container's own /sys"),
            ("type=bind,\"target=/x", "a quote is not closed"),
        ] {
            let error = mount(text).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
