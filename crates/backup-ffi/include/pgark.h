/*
 * libpgark: backups of PostgreSQL that can be trusted.
 *
 * Made from the library's source: do not edit.
 *
 * Strings are UTF-8 and end with a NUL. A function that can fail returns a status, which is 0 or the number
 * that the command pgark would exit with, and can give an error that says more.
 *
 * Every function may be called from any thread. The library keeps no state between calls; the threads that a
 * call starts end with it, or a moment later when a store does not answer, so do not unload the library.
 * After fork() a child must call exec() before it calls the library.
 */

#ifndef PGARK_H
#define PGARK_H

#include <stdint.h>

/**
 * What a function returns. The numbers never change their meaning; later versions add others.
 */
enum pgark_status {
    /** success */
    PGARK_OK = 0,
    /** wrong usage */
    PGARK_USAGE = 2,
    /** wrong configuration */
    PGARK_CONFIG = 3,
    /** no connection to PostgreSQL */
    PGARK_CONNECT = 10,
    /** PostgreSQL refused the login */
    PGARK_AUTH = 11,
    /** no such database */
    PGARK_NO_DATABASE = 12,
    /** connection to PostgreSQL lost */
    PGARK_CONNECTION_LOST = 13,
    /** PostgreSQL reported an error */
    PGARK_DATABASE = 14,
    /** a client tool is missing or too old */
    PGARK_TOOL_MISSING = 20,
    /** a client tool failed */
    PGARK_TOOL_FAILED = 21,
    /** the store did not answer */
    PGARK_STORE_UNAVAILABLE = 30,
    /** the store denied access */
    PGARK_STORE_DENIED = 31,
    /** the bucket does not exist */
    PGARK_BUCKET_MISSING = 32,
    /** wrong region */
    PGARK_WRONG_REGION = 33,
    /** the clock is wrong */
    PGARK_CLOCK_SKEW = 34,
    /** no space left */
    PGARK_DISK_FULL = 35,
    /** input or output failed */
    PGARK_IO = 36,
    /** not a repository */
    PGARK_NOT_A_REPOSITORY = 40,
    /** newer format */
    PGARK_NEWER_FORMAT = 41,
    /** no such backup */
    PGARK_BACKUP_NOT_FOUND = 42,
    /** an object is missing */
    PGARK_OBJECT_MISSING = 43,
    /** exists already */
    PGARK_CONFLICT = 44,
    /** the backup was abandoned */
    PGARK_ABANDONED = 45,
    /** only part of it was done */
    PGARK_PARTIAL = 46,
    /** something needs attention */
    PGARK_ATTENTION = 47,
    /** damaged data */
    PGARK_INTEGRITY = 50,
    /** a key is needed */
    PGARK_KEY_MISSING = 51,
    /** wrong key */
    PGARK_WRONG_KEY = 52,
    /** not supported */
    PGARK_UNSUPPORTED = 60,
    /** internal error */
    PGARK_INTERNAL = 70,
    /** cancelled */
    PGARK_CANCELLED = 130,
};

/**
 * The version of this ABI. It changes when a function changes in a way that breaks its callers; a new
 * function does not change it.
 */
#define PGARK_ABI_VERSION 1

/**
 * What cancels a call from another thread. Made by pgark_cancel_new().
 */
typedef struct pgark_cancel pgark_cancel;

/**
 * Why a call failed.
 */
typedef struct pgark_error pgark_error;

/**
 * Told what happens during a call, as a JSON object, which lives until the function returns. "event" says
 * what it is:
 *
 * - {"event":"step","what":"tidying"}: a step began; one line.
 * - {"event":"started","id":"..."}: the backup has an id. No backup exists before the call succeeds.
 * - {"event":"expected","raw_bytes":N}: an estimate of the bytes before compression.
 * - {"event":"part_opened","part":N,"name":"..."}: parts count from 1. The name can hold that of the
 *   database, which an encrypted repository hides: keep it out of public logs.
 * - {"event":"progress","raw_bytes":N,"stored_bytes":N}: bytes so far, before compression and as stored.
 * - {"event":"part_finished","part":N,"stored_bytes":N}: the part is stored whole.
 * - {"event":"warning","message":"..."}: for a person to read; one line. The run goes on.
 *
 * Later versions add others: ignore what you do not know.
 *
 * One thread of the library makes all calls during one pgark_backup(), one after the other, and none after
 * that has returned. A slow function does not slow the backup, but misses progress and, far behind, other
 * events; pgark_backup() returns only when it has heard the last. It must return: no exception and no
 * longjmp() may leave it. It may call pgark_cancel_trigger().
 */
typedef void (*pgark_event_fn)(void *user,
                               const char *event_json);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, "1.2.3". The string is static: never free it.
 */
const char *pgark_version(void);

/**
 * The version of the ABI that the library was built with. A program that loads the library at run time
 * compares it with PGARK_ABI_VERSION.
 */
uint32_t pgark_abi_version(void);

/**
 * Backs one database up. Makes the repository where there is none yet.
 *
 * Blocks until the backup is whole and durable, or until it has failed and what it stored is removed as far
 * as the store allows. Several threads may make backups at once.
 *
 * - config_toml: the configuration, as the file pgark.toml has it. [repository] with its url is needed.
 *   Relative paths in it are relative to the working directory of the process.
 * - cluster: name of the cluster in the repository. NULL: the only one of the configuration, or "main".
 * - db: the database as a libpq connection string, a URI, or a name. NULL: that of the cluster in the
 *   configuration, or what libpq's environment variables say.
 * - cancel: cancels the call; it ends with PGARK_CANCELLED soon after. NULL: it cannot be cancelled. It must
 *   not be freed before the call has returned.
 * - on_event: told what happens, see pgark_event_fn. NULL: nobody is. user is passed on to it untouched.
 * - json_out: what `pgark backup --json` prints: an object with "repository" (its URL), "new_repository"
 *   (whether this call made it) and "backup" (the record: "id", "stored_bytes", "raw_bytes", ...). Free it
 *   with pgark_string_free(). Set to NULL after a failure. NULL: not wanted.
 * - error_out: set to NULL, or after a failure to an error. Free it with pgark_error_free(). NULL: not
 *   wanted.
 *
 * Returns PGARK_OK, or the status of the failure.
 */
int32_t pgark_backup(const char *config_toml,
                     const char *cluster,
                     const char *db,
                     pgark_cancel *cancel,
                     pgark_event_fn on_event,
                     void *user,
                     char **json_out,
                     pgark_error **error_out);

/**
 * Lists the backups of a cluster.
 *
 * - config_toml, cluster, error_out: as for pgark_backup(). The repository must exist.
 * - json_out: what `pgark list --json` prints: an object with "cluster", "backups" (an array of records,
 *   oldest first) and "unfinished" (an array of ids: runs at work, or dead). Free it with
 *   pgark_string_free(). Set to NULL after a failure. NULL: not wanted.
 *
 * Returns PGARK_OK, or the status of the failure.
 */
int32_t pgark_list(const char *config_toml,
                   const char *cluster,
                   char **json_out,
                   pgark_error **error_out);

/**
 * Makes what cancels a call. One serves any number of calls, and cancels them all. Free it with
 * pgark_cancel_free().
 */
pgark_cancel *pgark_cancel_new(void);

/**
 * Cancels the calls that were given it, and those that are given it later. Returns at once. Any thread may
 * call it, also from an event function, and more than once; a signal handler may not. NULL: nothing happens.
 */
void pgark_cancel_trigger(pgark_cancel *cancel);

/**
 * Frees it, when every call that was given it has returned. NULL: nothing happens.
 */
void pgark_cancel_free(pgark_cancel *cancel);

/**
 * The status that the failed call returned. NULL: PGARK_OK.
 */
int32_t pgark_error_code(const pgark_error *error);

/**
 * What went wrong, and because of what, in one line. The string belongs to the error and lives as long. NULL
 * only for NULL.
 */
const char *pgark_error_message(const pgark_error *error);

/**
 * What to do about it, or NULL where there is nothing to say. The string belongs to the error and lives as
 * long.
 */
const char *pgark_error_hint(const pgark_error *error);

/**
 * Frees an error. NULL: nothing happens.
 */
void pgark_error_free(pgark_error *error);

/**
 * Frees a string that a call gave in its json_out. NULL: nothing happens.
 */
void pgark_string_free(char *string);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PGARK_H */
