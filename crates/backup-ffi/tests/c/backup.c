/*
 * Uses every function of libpgark, as a program in C would. The test c_abi.rs compiles and runs it, and reads
 * what it prints.
 *
 *   backup CONFIG DATABASE MISSING_DATABASE LOCKED_DATABASE
 *
 * CONFIG is the text of a configuration, the others are connection strings. A dump of the locked database
 * never ends.
 */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pgark.h"

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                         \
        }                                                                    \
    } while (0)

/* What an event function has seen. The library calls it from a thread of its own, but never after the call
 * that it belongs to, so nothing here needs a lock. */
struct seen {
    pthread_t thread;
    int count;
    int started;
    int progress;
    int running;
    pgark_cancel *cancel_when_started;
};

static void on_event(void *user, const char *event_json)
{
    struct seen *seen = user;

    CHECK(seen->running);
    CHECK(!pthread_equal(pthread_self(), seen->thread));
    seen->count++;
    if (strstr(event_json, "\"event\":\"started\"")) {
        seen->started++;
        pgark_cancel_trigger(seen->cancel_when_started);
    }
    if (strstr(event_json, "\"event\":\"progress\""))
        seen->progress++;
}

static struct seen nothing_seen(pgark_cancel *cancel_when_started)
{
    struct seen seen = {pthread_self(), 0, 0, 0, 1, cancel_when_started};

    return seen;
}

/* The id in the record that pgark_backup() gave. */
static void copy_id(const char *json, char *id, size_t size)
{
    const char *begin = strstr(json, "\"id\":\"");
    size_t length;

    CHECK(begin);
    begin += strlen("\"id\":\"");
    length = strcspn(begin, "\"");
    CHECK(length > 0 && length < size);
    memcpy(id, begin, length);
    id[length] = '\0';
}

static void print_failure(const char *what, int32_t status, pgark_error *error)
{
    const char *hint = pgark_error_hint(error);

    CHECK(error);
    CHECK(pgark_error_code(error) == status);
    printf("%s: %d: %s\n", what, (int)status, pgark_error_message(error));
    printf("%s, hint: %s\n", what, hint ? hint : "none");
    pgark_error_free(error);
}

int main(int argc, char **argv)
{
    const char *config, *database, *missing, *locked;
    char id[128];
    char *json = NULL;
    pgark_error *error = NULL;
    pgark_cancel *cancel;
    struct seen seen;
    int32_t status;

    CHECK(argc == 5);
    config = argv[1];
    database = argv[2];
    missing = argv[3];
    locked = argv[4];

    printf("version: %s\n", pgark_version());
    CHECK(pgark_abi_version() == PGARK_ABI_VERSION);

    /* There is nothing to list yet. */
    status = pgark_list(config, NULL, &json, &error);
    CHECK(status == PGARK_NOT_A_REPOSITORY && !json);
    print_failure("no repository", status, error);

    /* What cannot be backed up leaves no repository behind. */
    status = pgark_backup(config, NULL, missing, NULL, NULL, NULL, &json, &error);
    CHECK(!json);
    print_failure("missing database", status, error);
    CHECK(pgark_list(config, NULL, NULL, NULL) == PGARK_NOT_A_REPOSITORY);

    /* A backup, with events. */
    seen = nothing_seen(NULL);
    cancel = pgark_cancel_new();
    status = pgark_backup(config, NULL, database, cancel, on_event, &seen, &json, &error);
    seen.running = 0;
    if (status != PGARK_OK)
        print_failure("backup", status, error);
    CHECK(status == PGARK_OK && !error && json);
    CHECK(seen.started == 1 && seen.progress >= 1 && seen.count > 3);
    copy_id(json, id, sizeof id);
    printf("backup: %s\n", json);
    pgark_string_free(json);
    pgark_cancel_free(cancel);

    /* It is in the list. */
    status = pgark_list(config, "main", &json, &error);
    CHECK(status == PGARK_OK && !error);
    CHECK(strstr(json, id));
    printf("list: %s\n", json);
    pgark_string_free(json);

    /* Wrong arguments. */
    status = pgark_backup("[repository]\nurl = 7\n", NULL, database, NULL, NULL, NULL, &json, &error);
    print_failure("malformed configuration", status, error);
    status = pgark_backup(NULL, NULL, database, NULL, NULL, NULL, &json, &error);
    print_failure("no configuration", status, error);
    status = pgark_list(config, "caf\xe9", &json, &error);
    print_failure("not UTF-8", status, error);
    CHECK(pgark_backup(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) == PGARK_USAGE);

    /* Cancelled by another thread in the middle, and before it begins. */
    cancel = pgark_cancel_new();
    seen = nothing_seen(cancel);
    status = pgark_backup(config, NULL, locked, cancel, on_event, &seen, &json, &error);
    seen.running = 0;
    CHECK(seen.started == 1 && !json);
    print_failure("cancelled", status, error);
    seen = nothing_seen(NULL);
    CHECK(pgark_backup(config, NULL, database, cancel, on_event, &seen, NULL, NULL) == PGARK_CANCELLED);
    CHECK(seen.started == 0);
    pgark_cancel_free(cancel);

    /* NULL is nothing, everywhere. */
    pgark_cancel_trigger(NULL);
    pgark_cancel_free(NULL);
    pgark_string_free(NULL);
    pgark_error_free(NULL);
    CHECK(pgark_error_code(NULL) == PGARK_OK && !pgark_error_message(NULL) && !pgark_error_hint(NULL));

    puts("done");
    return 0;
}
