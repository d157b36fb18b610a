/*
 * srun --container-image=IMAGE PROGRAM: runs the tasks of a Slurm step in a container of gpurun.
 *
 * A SPANK plugin (slurm/spank.h). It only registers the options, starts `gpurun step-enter` as root, and does in each task what
 * only the task itself can do: it joins the container's mount namespace, and installs the seccomp filter. gpurun parses all
 * options and creates the container.
 *
 *     slurmstepd  user_init              starts `gpurun step-enter`: the request is its standard input
 *     slurmstepd  task_post_fork         sends the pid of each task; the container is made after the last one. It does not
 *                                        wait: until the step runs, Slurm cannot cancel it
 *     task        task_init_privileged   limits the capabilities
 *     task        task_init              waits for the container and joins it, as the job's user
 *     slurmstepd  task_exit              the container ends with the last task
 *     slurmd      job_epilog             `gpurun step-clean JOB` removes the files of --container-name
 *
 * Two sockets keep message boundaries (SOCK_SEQPACKET). On the first one, slurmstepd and gpurun talk. On the second one, gpurun
 * sends text for the user, which one of the tasks shows, and one message for each task, with the descriptors of the namespace,
 * the filter and the settings.
 *
 * A task keeps CAP_SYS_ADMIN from task_init_privileged to task_init, because joining needs it and must come last: Slurm uses
 * the host's files in between, and changes to the job's working directory. Only code of Slurm runs meanwhile. A task that cannot
 * join ends here, also where plugstack.conf says `optional`: its program must never run outside of the container.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

SPANK_PLUGIN(gpurun, 1)

/* The exit status of a task for which gpurun failed, as of `gpurun run`. */
#define FAILED 125
/* The descriptors of `gpurun step-enter`. */
#define CONTROL 3
#define TASKS 4
/* The longest message between slurmstepd and gpurun. */
#define LONGEST 65536

static int on_option(int value, const char *argument, int remote);

/* The names are those of pyxis. The numbers are positions in `values`. */
enum option { IMAGE, MOUNTS, WORKDIR, NAME, SAVE, MOUNT_HOME, REMAP_ROOT, ENTRYPOINT, ENTRYPOINT_LOG, WRITABLE, ENV, OPTIONS };
static const char *const keys[OPTIONS] = {
	"image", "mounts", "workdir", "name", "save", "mount-home", "remap-root", "entrypoint", "entrypoint-log", "writable",
	"env",
};
/* A flag's number is twice its position, and one more for "yes". */
#define YES(option) (2 * (option) + 1)
#define NO(option) (2 * (option))

static struct spank_option options[] = {
	{"container-image", "NAME|PATH", "[gpurun] image of the container: a name in the node's store or in a registry, or the "
	 "path of an archive or an OCI layout", 1, YES(IMAGE), on_option},
	{"container-mounts", "SRC:DST[:FLAGS][,SRC:DST...]", "[gpurun] bind mounts in the container; FLAGS: ro, rw", 1, YES(MOUNTS),
	 on_option},
	{"container-workdir", "PATH", "[gpurun] working directory in the container", 1, YES(WORKDIR), on_option},
	{"container-name", "NAME", "[gpurun] keep the container's files under this name for later steps of the job", 1, YES(NAME),
	 on_option},
	{"container-save", "PATH", "[gpurun] save the container as an image archive when the step ends", 1, YES(SAVE), on_option},
	{"container-mount-home", NULL, "[gpurun] mount the home directory", 0, YES(MOUNT_HOME), on_option},
	{"no-container-mount-home", NULL, "[gpurun] do not mount the home directory (default)", 0, NO(MOUNT_HOME), on_option},
	{"container-remap-root", NULL, "[gpurun] not supported: it needs a user namespace", 0, YES(REMAP_ROOT), on_option},
	{"no-container-remap-root", NULL, "[gpurun] keep the user (default)", 0, NO(REMAP_ROOT), on_option},
	{"container-entrypoint", NULL, "[gpurun] run the image's entrypoint once, and use its environment", 0, YES(ENTRYPOINT),
	 on_option},
	{"no-container-entrypoint", NULL, "[gpurun] do not run the image's entrypoint (default)", 0, NO(ENTRYPOINT), on_option},
	{"container-entrypoint-log", NULL, "[gpurun] show what the entrypoint writes", 0, YES(ENTRYPOINT_LOG), on_option},
	{"container-writable", NULL, "[gpurun] make the container's files writable (default)", 0, YES(WRITABLE), on_option},
	{"container-readonly", NULL, "[gpurun] make the container's files read-only", 0, NO(WRITABLE), on_option},
	{"container-env", "NAME[,NAME...]", "[gpurun] variables of the job that win over those of the image", 1, YES(ENV), on_option},
	SPANK_OPTIONS_TABLE_END
};

/* The values of the options, or NULL. A flag is "1" or "0". */
static char *values[OPTIONS];

/* The step on this node. */
static struct {
	bool enabled;
	int control;
	int tasks;
	pid_t helper;
	pid_t owner;
	uid_t uid;
	uint32_t local_tasks;
	uint32_t ended;
} step = {.control = -1, .tasks = -1};

static int on_option(int value, const char *argument, int remote)
{
	(void)remote;
	enum option option = value / 2;
	bool is_flag = option >= MOUNT_HOME && option <= WRITABLE;
	/* slurmstepd passes an empty argument with a flag. */
	const char *given = !is_flag && argument != NULL ? argument : value % 2 ? "1" : "0";

	if (*given == '\0') {
		slurm_error("gpurun: --container-%s: the value is empty", keys[option]);
		return -1;
	}
	/* Slurm may pass an option twice, also from the environment of an allocation. */
	if (values[option] != NULL && strcmp(values[option], given) != 0 && is_flag) {
		slurm_error("gpurun: the options for --container-%s contradict each other", keys[option]);
		return -1;
	}
	free(values[option]);
	values[option] = strdup(given);
	return values[option] == NULL ? -1 : 0;
}

/* Returns the value of pyxis' variable for an option, or NULL. */
static const char *of_variable(char *const env[], const char *key)
{
	char name[64];
	int size = snprintf(name, sizeof(name), "PYXIS_CONTAINER_%s=", key);

	for (char *c = name; *c != '\0'; c++)
		*c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
	for (size_t i = 0; env != NULL && env[i] != NULL; i++)
		if (strncmp(env[i], name, (size_t)size) == 0 && env[i][size] != '\0')
			return env[i] + size;
	return NULL;
}

/* The value of PYXIS_CONTAINER_READONLY, or NULL. */
static const char *readonly;

/* Takes the options that the command line does not have from the environment. gpurun checks the values. */
static void take_variables(char *const env[])
{
	for (int option = 0; option < OPTIONS; option++) {
		const char *value = values[option] == NULL ? of_variable(env, keys[option]) : NULL;
		if (value != NULL)
			values[option] = strdup(value);
	}
	readonly = of_variable(env, "readonly");
}

static bool is_used(void)
{
	return values[IMAGE] != NULL || values[NAME] != NULL;
}

int slurm_spank_init(spank_t spank, int ac, char **av)
{
	(void)ac;
	(void)av;
	spank_context_t context = spank_context();

	if (context != S_CTX_LOCAL && context != S_CTX_REMOTE && context != S_CTX_ALLOCATOR)
		return 0;
	for (int i = 0; options[i].name != NULL; i++)
		if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS) {
			slurm_error("gpurun: cannot register the option --%s", options[i].name);
			return -1;
		}
	return 0;
}

int slurm_spank_init_post_opt(spank_t spank, int ac, char **av)
{
	(void)spank;
	(void)ac;
	(void)av;
	if (spank_context() == S_CTX_REMOTE)
		return 0;
	int given = 0;
	while (given < OPTIONS && values[given] == NULL)
		given++;
	take_variables(environ);
	if (is_used() || given == OPTIONS)
		return 0;
	slurm_error("gpurun: the options for --container-%s need --container-image or --container-name", keys[given]);
	return -1;
}

/* Writes one text with its NUL. */
static bool put(FILE *file, const char *key, const char *value)
{
	return fprintf(file, "%s=%s", key, value) >= 0 && fputc('\0', file) != EOF;
}

/* Writes the request into an unnamed file in memory. Returns its descriptor, or -1. */
static int write_request(spank_t spank)
{
	int fd = memfd_create("gpurun-request", MFD_CLOEXEC);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
	uint32_t job = 0, number = 0;
	gid_t gid = 0, *groups = NULL;
	int group_count = 0, argc = 0;
	char **argv = NULL, **env = NULL;
	char text[64];

	if (file == NULL)
		return -1;
	if (spank_get_item(spank, S_JOB_ID, &job) || spank_get_item(spank, S_JOB_STEPID, &number) ||
	    spank_get_item(spank, S_JOB_UID, &step.uid) || spank_get_item(spank, S_JOB_GID, &gid) ||
	    spank_get_item(spank, S_JOB_SUPPLEMENTARY_GIDS, &groups, &group_count) ||
	    spank_get_item(spank, S_JOB_LOCAL_TASK_COUNT, &step.local_tasks) || spank_get_item(spank, S_JOB_ENV, &env))
		goto failed;
	/* The batch script is one task. */
	if (number == SLURM_BATCH_SCRIPT || step.local_tasks == 0)
		step.local_tasks = 1;
	bool is_written = true;
	const struct { const char *key; uint32_t value; } numbers[] = {
		{"job", job}, {"step", number}, {"uid", step.uid}, {"gid", gid}, {"tasks", step.local_tasks},
	};
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		snprintf(text, sizeof(text), "%u", numbers[i].value);
		is_written = is_written && put(file, numbers[i].key, text);
	}
	for (int i = 0; i < group_count; i++) {
		snprintf(text, sizeof(text), "%u", groups[i]);
		is_written = is_written && put(file, "group", text);
	}
	if (number == SLURM_BATCH_SCRIPT && spank_get_item(spank, S_JOB_ARGV, &argc, &argv) == 0 && argc > 0)
		is_written = is_written && put(file, "script", argv[0]);
	for (int option = 0; option < OPTIONS; option++)
		if (values[option] != NULL)
			is_written = is_written && put(file, keys[option], values[option]);
	if (values[WRITABLE] == NULL && readonly != NULL)
		is_written = is_written && put(file, "readonly", readonly);
	for (size_t i = 0; env != NULL && env[i] != NULL; i++)
		is_written = is_written && put(file, "variable", env[i]);
	/* The descriptor stays open as another one. */
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (!is_written || fclose(file) != 0 || copy < 0 || lseek(copy, 0, SEEK_SET) < 0)
		return -1;
	return copy;
failed:
	fclose(file);
	return -1;
}

/* Puts a descriptor at a number, in the child. */
static bool place(int fd, int number)
{
	return fd == number ? fcntl(fd, F_SETFD, 0) == 0 : dup2(fd, number) == number;
}

/*
 * Starts gpurun as root, with these descriptors and this environment alone. slurmstepd has threads: until the exec, the child
 * makes system calls only.
 */
static pid_t start(const char *program, char *const env[], int request, int control, int tasks)
{
	char *const argv[] = {"gpurun", "step-enter", NULL};
	/* Out of the way of the final numbers. */
	int high[3] = {fcntl(request, F_DUPFD_CLOEXEC, 10), fcntl(control, F_DUPFD_CLOEXEC, 10), fcntl(tasks, F_DUPFD_CLOEXEC, 10)};
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid_t pid = -1;

	if (high[0] >= 0 && high[1] >= 0 && high[2] >= 0 && null >= 0)
		pid = fork();
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		/* The real user is root; only the effective one was changed. */
		if (syscall(SYS_setresuid, 0, 0, 0) != 0 || syscall(SYS_setresgid, 0, 0, 0) != 0 || syscall(SYS_setgroups, 0, NULL) != 0)
			_exit(FAILED);
		if (!place(high[0], 0) || !place(null, 1) || !place(null, 2) || !place(high[1], CONTROL) || !place(high[2], TASKS))
			_exit(FAILED);
		if (syscall(SYS_close_range, TASKS + 1, ~0U, 0) != 0)
			_exit(FAILED);
		execve(program, argv, env);
		_exit(FAILED);
	}
	for (int i = 0; i < 3; i++)
		if (high[i] >= 0)
			close(high[i]);
	if (null >= 0)
		close(null);
	return pid;
}

/*
 * The arguments in plugstack.conf: gpurun=PATH, container_scope=job|global as for pyxis, and GPURUN_NAME=VALUE for gpurun's own
 * variables. `env` has room for all of them
 * and three more. Returns the path of the program, or NULL.
 */
static const char *configure(int ac, char **av, char **env)
{
	const char *program = "/usr/local/bin/gpurun";
	size_t count = 0;

	env[count++] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	env[count++] = "HOME=/nonexistent";
	for (int i = 0; i < ac; i++) {
		if (strncmp(av[i], "gpurun=", 7) == 0)
			program = av[i] + 7;
		else if (strncmp(av[i], "GPURUN_", 7) == 0)
			env[count++] = av[i];
		else if (strcmp(av[i], "container_scope=global") == 0)
			env[count++] = "GPURUN_SLURM_GLOBAL=1";
		else if (strcmp(av[i], "container_scope=job") == 0)
			continue;
		else {
			slurm_error("gpurun: `%s` in plugstack.conf is not gpurun=PATH, container_scope=job|global or GPURUN_NAME=VALUE", av[i]);
			return NULL;
		}
	}
	env[count] = NULL;
	return program;
}

/* Runs in slurmstepd, with the job's user as the effective user and the job's directory as the working directory. */
int slurm_spank_user_init(spank_t spank, int ac, char **av)
{
	int control[2] = {-1, -1}, tasks[2] = {-1, -1}, request = -1;
	char **env = calloc((size_t)ac + 3, sizeof(*env)), **variables = NULL;

	if (spank_get_item(spank, S_JOB_ENV, &variables) == ESPANK_SUCCESS)
		take_variables(variables);
	if (!is_used() || env == NULL)
		goto done;
	step.enabled = true;
	const char *program = configure(ac, av, env);
	if (program == NULL)
		goto done;
	request = write_request(spank);
	if (request < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, tasks) != 0) {
		slurm_error("gpurun: cannot prepare the request: %m");
		goto done;
	}
	step.helper = start(program, env, request, control[1], tasks[1]);
	if (step.helper < 0) {
		slurm_error("gpurun: cannot start `%s`: %m", program);
		goto done;
	}
	step.owner = getpid();
	step.control = control[0];
	step.tasks = tasks[0];
	control[0] = tasks[0] = -1;
done:
	free(env);
	for (int i = 0; i < 2; i++) {
		if (control[i] >= 0)
			close(control[i]);
		if (tasks[i] >= 0)
			close(tasks[i]);
	}
	if (request >= 0)
		close(request);
	/* An error here would not reach srun, whose step would seem to succeed. The tasks fail instead. */
	return 0;
}

/* Shows a message, line by line. */
static void show(char *text)
{
	char *rest = NULL;

	for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
		slurm_spank_log("%s", line);
}

/* Shows messages until gpurun has done what it was asked for: `R` or `F`. */
static void await_answer(void)
{
	static char message[LONGEST + 1];

	for (;;) {
		ssize_t size = recv(step.control, message, LONGEST, 0);
		/* gpurun may have ended without reading the last message. Its answer comes after this error. */
		if (size < 0 && (errno == EINTR || errno == ECONNRESET))
			continue;
		if (size <= 0) {
			slurm_spank_log("gpurun: error: `gpurun step-enter` has ended unexpectedly");
			return;
		}
		message[size] = '\0';
		if (message[0] == 'R' || message[0] == 'F')
			return;
		show(message + 1);
	}
}

/* Runs in slurmstepd for each task, in whose cgroups the task is now. No task has begun its program. */
int slurm_spank_task_post_fork(spank_t spank, int ac, char **av)
{
	(void)ac;
	(void)av;
	pid_t pid = 0;
	char message[32];

	if (!step.enabled || step.control < 0)
		return 0;
	if (spank_get_item(spank, S_TASK_PID, &pid) != ESPANK_SUCCESS)
		return 0;
	int size = snprintf(message, sizeof(message), "P%d", (int)pid);
	if (send(step.control, message, (size_t)size, MSG_NOSIGNAL) != size)
		slurm_spank_log("gpurun: error: `gpurun step-enter` does not run");
	return 0;
}

static void limit_capabilities(void)
{
	/* Docker's default set, for jobs of root. The set of a user's program is empty, whatever the files of an image say. */
	static const int usual[] = {
		CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FSETID, CAP_FOWNER, CAP_MKNOD, CAP_NET_RAW, CAP_SETGID, CAP_SETUID, CAP_SETFCAP, CAP_SETPCAP,
		CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT, CAP_KILL, CAP_AUDIT_WRITE,
	};
	for (int number = 0; number < 64; number++) {
		bool is_kept = false;
		for (size_t i = 0; step.uid == 0 && i < sizeof(usual) / sizeof(*usual); i++)
			is_kept = is_kept || usual[i] == number;
		if (is_kept || prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0)
			continue;
		/* The kernel does not know higher numbers. */
		if (errno != EINVAL)
			_exit(FAILED);
		break;
	}
}

/* Runs in the task as root, before it becomes the job's user. */
int slurm_spank_task_init_privileged(spank_t spank, int ac, char **av)
{
	(void)spank;
	(void)ac;
	(void)av;
	if (!step.enabled)
		return 0;
	if (step.control < 0 || prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0)
		_exit(FAILED);
	limit_capabilities();
	return 0;
}

/* Sets the effective and permitted capabilities. */
static bool set_capabilities(uint64_t effective, uint64_t permitted)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {
		{.effective = (uint32_t)effective, .permitted = (uint32_t)permitted},
		{.effective = (uint32_t)(effective >> 32), .permitted = (uint32_t)(permitted >> 32)},
	};
	return syscall(SYS_capset, &header, data) == 0;
}

static void refuse(const char *what)
{
	slurm_error("gpurun: cannot %s: %m", what);
	_exit(FAILED);
}

/* Writes text of gpurun's to the task's standard error. */
static void show_in_task(const char *text, size_t size)
{
	while (size > 0) {
		ssize_t part = write(STDERR_FILENO, text, size);
		if (part < 0 && errno == EINTR)
			continue;
		if (part <= 0)
			return;
		text += part;
		size -= (size_t)part;
	}
}

/* Receives the message for one task: the namespace, the filter and the settings. Shows the text that comes before. */
static bool receive(int fds[3])
{
	static char bytes[LONGEST + 1];
	char space[CMSG_SPACE(3 * sizeof(int))];
	struct msghdr message;
	ssize_t size;

	for (;;) {
		struct iovec part = {.iov_base = bytes, .iov_len = LONGEST};
		message = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
		size = recvmsg(step.tasks, &message, MSG_CMSG_CLOEXEC);
		if (size < 0 && errno == EINTR)
			continue;
		if (size <= 0) {
			slurm_error("gpurun: `gpurun step-enter` has ended unexpectedly");
			return false;
		}
		if (bytes[0] != 'N')
			break;
		if (bytes[size - 1] != '\n')
			bytes[size++] = '\n';
		show_in_task(bytes + 1, (size_t)size - 1);
	}
	struct cmsghdr *header = size == 1 ? CMSG_FIRSTHDR(&message) : NULL;
	if (header == NULL || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(3 * sizeof(int)))
		return false;
	memcpy(fds, CMSG_DATA(header), 3 * sizeof(int));
	return true;
}

/* Reads a whole file of gpurun's, with a NUL after it. */
static char *read_all(int fd, size_t *size)
{
	struct stat about;
	char *bytes = fstat(fd, &about) == 0 ? malloc((size_t)about.st_size + 1) : NULL;

	*size = 0;
	if (bytes == NULL)
		return NULL;
	for (size_t rest = (size_t)about.st_size; *size < rest;) {
		ssize_t part = pread(fd, bytes + *size, rest - *size, (off_t)*size);
		if (part <= 0) {
			free(bytes);
			return NULL;
		}
		*size += (size_t)part;
	}
	bytes[*size] = '\0';
	return bytes;
}

/*
 * Applies the settings, each with its NUL: `wDIR` and `xDIR` name the working directory (x: `/` if it cannot be entered), `sNAME=VALUE` sets a
 * variable, `dNAME=VALUE` sets one that the job does not have, and `uNAME` unsets one.
 */
static void apply(spank_t spank, char *settings, size_t size)
{
	for (char *setting = settings; setting < settings + size; setting += strlen(setting) + 1) {
		char *value = setting + 1;
		spank_err_t result = ESPANK_SUCCESS;
		if ((*setting == 'w' || *setting == 'x') && chdir(value) != 0 && (*setting == 'w' || chdir("/") != 0)) {
			slurm_error("gpurun: cannot enter the working directory `%s`: %m", value);
			_exit(FAILED);
		} else if (*setting == 's' || *setting == 'd') {
			char *name = strsep(&value, "=");
			bool is_set = *setting == 's';
			if (value != NULL) {
				result = spank_setenv(spank, name, value, is_set);
				value[-1] = '=';
			}
			if (result == ESPANK_ENV_EXISTS)
				result = ESPANK_SUCCESS;
			value = name;
			setting = name - 1;
		} else if (*setting == 'u') {
			spank_unsetenv(spank, value);
		}
		if (result != ESPANK_SUCCESS)
			refuse("set the environment");
	}
}

/* Runs in the task as the job's user, directly before its program. */
int slurm_spank_task_init(spank_t spank, int ac, char **av)
{
	(void)ac;
	(void)av;
	int fds[3];
	size_t filter_size, settings_size;
	const uint64_t joining = 1ULL << CAP_SYS_ADMIN | 1ULL << CAP_SYS_CHROOT;

	if (!step.enabled)
		return 0;
	/* gpurun has said why. */
	if (!receive(fds))
		_exit(FAILED);
	char *filter = read_all(fds[1], &filter_size), *settings = read_all(fds[2], &settings_size);
	if (filter == NULL || settings == NULL)
		refuse("read the container's settings");
	if (step.uid != 0 && !set_capabilities(joining, joining))
		refuse("join the container");
	if (setns(fds[0], CLONE_NEWNS) != 0)
		refuse("join the container");
	if (step.uid != 0 && !set_capabilities(0, 0))
		refuse("drop the capabilities");
	if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) != 0 || (step.uid != 0 && set_capabilities(joining, joining)))
		refuse("drop the capabilities");
	apply(spank, settings, settings_size);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	close(step.control);
	close(step.tasks);
	struct sock_fprog program = {
		.len = (unsigned short)(filter_size / sizeof(struct sock_filter)), .filter = (struct sock_filter *)filter,
	};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
		refuse("install the seccomp filter");
	free(filter);
	free(settings);
	return 0;
}

/*
 * Ends gpurun's process, which sees the end of the socket, and waits for it: it is in the cgroups of the step, which Slurm removes
 * next. slurmstepd may have waited for it already, as for any child.
 */
static void finish(void)
{
	if (step.control >= 0)
		close(step.control);
	if (step.tasks >= 0)
		close(step.tasks);
	step.control = step.tasks = -1;
	while (step.helper > 0 && step.owner == getpid() && waitpid(step.helper, NULL, 0) < 0 && errno == EINTR)
		;
	step.helper = 0;
}

/* Runs in slurmstepd for each task that has ended. */
int slurm_spank_task_exit(spank_t spank, int ac, char **av)
{
	(void)spank;
	(void)ac;
	(void)av;
	if (!step.enabled || step.control < 0 || ++step.ended != step.local_tasks)
		return 0;
	/* After an error, gpurun has answered already. */
	send(step.control, "X", 1, MSG_NOSIGNAL);
	await_answer();
	finish();
	return 0;
}

/* Runs at the end of a job on this node, as root, in a process of slurmd's. */
int slurm_spank_job_epilog(spank_t spank, int ac, char **av)
{
	uint32_t job = 0;
	char number[16], **env = calloc((size_t)ac + 3, sizeof(*env));
	char *argv[] = {"gpurun", "step-clean", number, NULL};
	const char *program = env == NULL ? NULL : configure(ac, av, env);
	int status = 0;

	if (program == NULL || spank_get_item(spank, S_JOB_ID, &job) != ESPANK_SUCCESS)
		goto done;
	snprintf(number, sizeof(number), "%u", job);
	pid_t pid = fork();
	if (pid == 0) {
		int null = open("/dev/null", O_RDWR);
		if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0 || syscall(SYS_close_range, 3, ~0U, 0) != 0)
			_exit(FAILED);
		execve(program, argv, env);
		_exit(FAILED);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (pid < 0 || status != 0)
		slurm_error("gpurun: cannot remove the files that job %u kept", job);
done:
	free(env);
	/* A failure would drain the node. */
	return 0;
}

int slurm_spank_exit(spank_t spank, int ac, char **av)
{
	(void)spank;
	(void)ac;
	(void)av;
	finish();
	for (int option = 0; option < OPTIONS; option++) {
		free(values[option]);
		values[option] = NULL;
	}
	return 0;
}
