//! The recipe that gpurun replaces, as its users type it: docker's names, in a real terminal, with a stand-in of a GPU driver.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::gpu::Lab;
use crate::host::{Host, binary, eventually};

pub const TESTS: &[(&str, fn())] = &[
    ("the_shim_is_installed_where_no_docker_is", shim),
    ("dockers_names_answer_what_programs_ask", answers),
    ("the_recipe_works_as_it_is_typed", recipe),
];

/// A gpurun that only root can replace, and an empty directory for links to it. Returns both.
fn installed(host: &Host) -> (PathBuf, PathBuf) {
    let (program, bin) = (host.dir.join("gpurun"), host.dir.join("bin"));
    fs::copy(binary(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&bin).unwrap();
    (program, bin)
}

/// A line of bash in which `$gpurun` and `$bin` are what [`installed`] made, and PATH has no docker but that of `$bin`.
fn line(host: &Host, line: &str) -> Command {
    let path = format!("{}:{}", host.dir.join("bin").display(), tools(host).display());
    let mut command = host.shell(&format!("export PATH={path}; {line}"));
    command.env("gpurun", host.dir.join("gpurun")).env("bin", host.dir.join("bin"));
    command.env_remove("DOCKER_HOST");
    command
}

/// A directory with the programs that the lines need, and nothing else.
fn tools(host: &Host) -> PathBuf {
    let dir = host.dir.join("tools");
    if fs::create_dir(&dir).is_ok() {
        for name in ["bash", "cat", "cp", "ls", "nft", "python3", "readlink", "sed", "setsid", "touch"] {
            let found = crate::host::sh(&format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH; command -v {name}"));
            std::os::unix::fs::symlink(found.trim(), dir.join(name)).unwrap();
        }
    }
    dir
}

#[track_caller]
fn ok(host: &Host, text: &str) -> String {
    let answer = crate::host::answer(line(host, text).output().unwrap());
    assert_eq!(answer.code, 0, "{text}\nstdout: {}\nstderr: {}", answer.out, answer.err);
    answer.out.trim().to_owned()
}

#[track_caller]
fn fails(host: &Host, code: i32, text: &str) -> String {
    let answer = crate::host::answer(line(host, text).output().unwrap());
    assert_eq!(answer.code, code, "{text}\nstdout: {}\nstderr: {}", answer.out, answer.err);
    answer.err + &answer.out
}

fn shim() {
    let host = Host::with_box();
    let (program, bin) = installed(&host);
    assert!(fails(&host, 1, "$gpurun shim status --dir $bin").contains("docker          not installed"));
    // Another docker anywhere in PATH is left alone, and named.
    for (script, what) in [("#!/bin/sh\n", "another program"), ("#!/bin/sh\nexec podman \"$@\"\n", "podman-docker")] {
        for name in ["docker", "docker-compose"] {
            let other = tools(&host).join(name);
            fs::write(&other, script).unwrap();
            let error = fails(&host, 1, "$gpurun shim install --dir $bin");
            assert!(error.contains(&format!("`{}` is ", other.display())) && error.contains(what), "{error}");
            assert!(error.contains("hint: ") && fs::read_dir(&bin).unwrap().count() == 0, "{error}");
            assert!(fails(&host, 1, "$gpurun shim status --dir $bin").contains(what));
            fs::remove_file(other).unwrap();
        }
    }
    // root runs what the links point to.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    let error = fails(&host, 1, "$gpurun shim install --dir $bin");
    assert!(error.contains("other users can replace"), "{error}");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&program, Some(1000), None).unwrap();
    assert!(fails(&host, 1, "$gpurun shim install --dir $bin").contains("other users can replace"));
    std::os::unix::fs::chown(&program, Some(0), None).unwrap();
    assert!(fails(&host, 2, "$gpurun shim install --dir $bin/nosuch").contains("is not a directory"));

    for _ in 0..2 {
        let text = ok(&host, "$gpurun shim install --dir $bin");
        let want = ["docker", "docker-compose"]
            .map(|name| format!("{} -> {}", bin.join(name).display(), program.display()))
            .join("\n");
        assert_eq!(text, want);
    }
    assert_eq!(fs::read_dir(&bin).unwrap().count(), 2, "and no temporary file");
    assert!(ok(&host, "$gpurun shim status --dir $bin").contains(&format!("-> {}", program.display())));
    assert_eq!(ok(&host, "docker run --rm --network none box echo it works"), "it works");
    assert_eq!(ok(&host, "docker ps -aq; docker container ls -q"), "");
    assert!(fails(&host, 2, "docker swarm init").contains("gpurun has no command `swarm`"));
    // A command that gpurun calls itself with is no command of docker.
    assert!(fails(&host, 2, "docker supervise x").contains("no command `supervise`"));

    // A link to a program that was removed is still gpurun's, and a file is not.
    fs::remove_file(&program).unwrap();
    fs::copy(binary(), host.dir.join("other")).unwrap();
    assert!(fails(&host, 1, "./other shim status --dir $bin").contains("does not exist"));
    fs::remove_file(bin.join("docker-compose")).unwrap();
    fs::write(bin.join("docker-compose"), "mine").unwrap();
    let error = fails(&host, 1, "./other shim remove --dir $bin");
    assert!(error.contains("removed") && error.contains("docker-compose`: it is another program"), "{error}");
    assert!(!bin.join("docker").is_symlink() && bin.join("docker-compose").exists());
}

fn answers() {
    let host = Host::with_box();
    let (_, _) = installed(&host);
    ok(&host, "$gpurun shim install --dir $bin");
    let version = ok(&host, "docker version --format '{{.Server.Version}}'");
    for (asked, want) in [
        // From Makefiles and scripts.
        (r"docker --version | sed 's/Docker version \([0-9.]*\),.*/\1/'", &*version),
        (r"docker -v | sed -E 's/.*version ([0-9]+\.[0-9]+\.[0-9]+).*/\1/'", &version),
        ("docker info --format '{{.ServerVersion}}'", &version),
        ("docker version -f '{{.Client.Version}}'", &version),
        (r"docker version | sed -n 's/^ Version: *\([0-9.]*\).*/\1/p;T;q'", &version),
        ("docker compose version --short", "2.26.1"),
        ("docker-compose version --short", "2.26.1"),
        (r"docker-compose --version | sed -E 's/.*version v?([0-9.]+).*/\1/'", "2.26.1"),
        ("docker-compose version -f json", r#"{"version":"v2.26.1"}"#),
        (r"docker buildx version | sed -nE 's/.* v?([0-9]+\.[0-9]+\.[0-9]+).*/\1/p'", "0.13.1"),
        ("docker info >/dev/null 2>&1 && echo up", "up"),
        ("docker images -q nosuch", ""),
        ("docker image inspect box >/dev/null 2>&1 && echo there", "there"),
    ] {
        assert_eq!(ok(&host, asked), want, "{asked}");
    }
    assert!(version.starts_with("26."), "{version}");
    assert!(ok(&host, "docker").contains("Usage: gpurun") && ok(&host, "docker-compose").contains("Usage: gpurun"));
    assert_ne!(ok(&host, "$gpurun version -f '{{.Server.Version}}'"), version, "gpurun's own");
    assert!(fails(&host, 2, "DOCKER_HOST=ssh://gpu2 docker ps").contains("on this host only"));
    assert_eq!(ok(&host, "DOCKER_HOST=unix:///var/run/docker.sock docker ps -q"), "");
}

/// A shell in a terminal. Its prompt shows the exit code of the last line.
struct Desk {
    keys: File,
    screen: Arc<Mutex<String>>,
    shell: Child,
}

impl Desk {
    fn new(lab: &Lab) -> Self {
        let size = nix::pty::Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let (keys, slave) = (File::from(pty.master), File::from(pty.slave));
        let mut command = line(&lab.host, "PS1='[$?]> ' exec setsid --ctty bash --norc --noprofile -i");
        command.env("GPURUN_DRIVER_ROOT", &lab.driver.root).env("TERM", "dumb");
        let stream = || Stdio::from(slave.try_clone().unwrap());
        command.current_dir(lab.host.dir.join("desk")).stdin(stream()).stdout(stream()).stderr(stream());
        let shell = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut output, shown) = (keys.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let desk = Self { keys, screen, shell };
        desk.until("]> ");
        desk
    }

    /// Waits for a text, and returns all that was shown since the last call.
    #[track_caller]
    fn until(&self, text: &str) -> String {
        let deadline = std::time::Instant::now() + crate::host::PATIENCE;
        loop {
            let mut screen = self.screen.lock().unwrap();
            if screen.contains(text) {
                return std::mem::take(&mut *screen);
            }
            assert!(std::time::Instant::now() < deadline, "`{text}` does not appear:\n{screen}");
            drop(screen);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn press(&self, keys: &str) {
        (&self.keys).write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line that must work, and returns what is shown until the next prompt.
    #[track_caller]
    fn types(&self, line: &str) -> String {
        self.press(&format!("{line}\n"));
        let text = self.until("]> ");
        assert!(text.contains("[0]> "), "{line}\n{text}");
        text
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// The images have what the recipe uses of Jupyter: a program that listens on a port.
fn project(lab: &Lab) {
    let desk = lab.host.dir.join("desk");
    let write = |path: &str, text: &str| {
        let path = desk.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let dockerfile = "FROM box\n\
        RUN printf '#!/bin/sh\\nexec sh \"$@\"\\n' >/bin/bash && chmod 755 /bin/bash\n\
        COPY jupyter /bin/jupyter\n\
        RUN mkdir -p /work/share\n\
        WORKDIR /work\n\
        STOPSIGNAL SIGKILL\n\
        CMD [\"bash\"]\n";
    let jupyter = "#!/bin/sh\n\
        echo \"$@\" >/tmp/arguments\n\
        echo 'The Jupyter Notebook is running'\n\
        exec nc -ll -p 8888 -e echo notebook\n";
    let service = |name: &str| {
        format!(
            "  {name}:\n    build: {name}\n    image: {name}\n    tty: true\n    stdin_open: true\n    volumes:\n      - ./:/work/share\n"
        )
    };
    for name in ["tf2", "pytorch"] {
        write(&format!("{name}/Dockerfile"), dockerfile);
        write(&format!("{name}/jupyter"), jupyter);
        fs::set_permissions(desk.join(name).join("jupyter"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    write("docker-compose.yml", &format!("version: '3'\nservices:\n{}{}", service("tf2"), service("pytorch")));
    // notebook.auth.passwd of the notebook of that time.
    let token = "import argparse, hashlib, secrets\n\
        parser = argparse.ArgumentParser()\n\
        parser.add_argument('--password', required=True)\n\
        salt = secrets.token_hex(6)\n\
        digest = hashlib.sha1((parser.parse_args().password + salt).encode()).hexdigest()\n\
        print(f'sha1:{salt}:{digest}')\n";
    write("generate_token.py", token);
}

fn recipe() {
    let lab = Lab::new(4);
    lab.driver.hook("true");
    let host = &lab.host;
    installed(host);
    ok(host, "$gpurun shim install --dir $bin");
    project(&lab);
    let desk = Desk::new(&lab);
    let cpus = std::thread::available_parallelism().unwrap().get();

    let text = desk.types("docker-compose build --no-cache");
    assert!(text.contains("tf2") && text.contains("pytorch"), "{text}");
    desk.types("docker-compose up -d");
    assert_eq!(ok(host, "docker ps -q").lines().count(), 2);
    desk.types("docker-compose down");
    desk.types("cd pytorch && docker build . -t pytorch && cd ..");
    desk.types("docker build -t pytorch_cuda10 pytorch");
    let text = desk.types("docker images");
    for name in ["tf2", "pytorch_cuda10"] {
        assert!(text.contains(name), "{text}");
    }
    let text = desk.types("HASH=$(python3 generate_token.py --password secret); echo $HASH");
    let hash = text.lines().find(|line| line.starts_with("sha1:")).expect("a hash").trim();

    // The recipe is for a machine of 8 CPUs.
    let limit = if cpus < 8 { format!("{cpus}.") } else { "8.".to_owned() };
    desk.types(&format!(
        "docker run -it -d -v $(pwd):/work/share -p 18888:8888 --rm --memory=32g --memory-swap=-1 --cpus={limit} --cpuset-cpus 0 --gpus=all pytorch_cuda10"
    ));
    let id = ok(host, "docker ps -q");
    assert_eq!(id.len(), 12, "{id}");
    let text = desk.types("docker ps");
    assert!(text.contains(&id) && text.contains("pytorch_cuda10") && text.contains("18888->8888/tcp"), "{text}");
    let inspected = host.inspect(&id);
    assert_eq!(inspected["HostConfig"]["Memory"], 32_u64 << 30);
    assert_eq!(inspected["HostConfig"]["CpusetCpus"], "0");

    // Jupyter is started in the container, and outlives the terminal that started it.
    desk.press(&format!("docker exec -it {id} /bin/bash\n"));
    desk.until("# ");
    desk.press("ls /work/share; nvidia-smi -L; ls /dev/nvidia3 && echo all of them\n");
    let text = desk.until("\nall of them");
    assert!(text.contains("generate_token.py"), "{text}");
    desk.press(&format!(
        "jupyter notebook --ip=0.0.0.0 --port=8888 --no-browser --allow-root --NotebookApp.password='{hash}' &\n"
    ));
    desk.until("The Jupyter Notebook is running");
    desk.press("\x10\x11");
    desk.until("]> ");
    assert_eq!(ok(host, &format!("docker exec {id} cat /tmp/arguments")).rsplit_once("password=").unwrap().1, hash);
    eventually("the notebook answers on the published port", || {
        let script =
            "import socket; s = socket.create_connection(('127.0.0.1', 18888), 5); print(s.recv(100).decode())";
        let answer = crate::host::answer(host.program("python3", &["-c", script]).output().unwrap());
        answer.out.contains("notebook")
    });

    // The container's own terminal.
    desk.press(&format!("docker attach {id}\n"));
    eventually("the shell answers", || {
        desk.press("echo b$((40+2))\n");
        desk.screen.lock().unwrap().contains("b42")
    });
    desk.press("\x10\x11");
    desk.until("]> ");
    assert_eq!(ok(host, "docker ps -q"), id, "the keys leave it running");

    let text = desk
        .types("docker run --rm --gpus all --pid=host pytorch_cuda10 sh -c 'nvidia-smi -L; echo $$ of /proc/*/comm'");
    assert!(text.contains("]> "), "{text}");
    let text = desk.types("docker run --rm --gpus '\"device=0,2\"' pytorch_cuda10 sh -c 'cd /dev; echo nvidia[0-9]'");
    assert!(text.contains("nvidia0 nvidia2"), "{text}");
    desk.types(&format!("docker stop {id}"));
    eventually("`--rm` removes it", || ok(host, "docker ps -aq").is_empty());
    desk.types("docker rmi tf2");
    desk.press("exit\n");
    eventually("nothing is left", || host.leftovers().is_empty());
}
