/* Two MPI tasks send a message of one MiB to each other, back and forth, and check every byte. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>

enum { SIZE = 1 << 20, ROUNDS = 200 };

static char sent[SIZE], received[SIZE], expected[SIZE];

int main(int argc, char **argv)
{
    int rank, ranks, wrong = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks != 2) {
        fprintf(stderr, "ping-pong: there are %d tasks, not 2\n", ranks);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    double begin = MPI_Wtime();
    for (int round = 0; round < ROUNDS; round++) {
        memset(sent, 2 * round + rank, SIZE);
        memset(expected, 2 * round + 1 - rank, SIZE);
        if (rank == 0)
            MPI_Send(sent, SIZE, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
        MPI_Recv(received, SIZE, MPI_CHAR, 1 - rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (rank == 1)
            MPI_Send(sent, SIZE, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        wrong += memcmp(received, expected, SIZE) != 0;
    }
    double seconds = MPI_Wtime() - begin;
    printf("rank %d of %d: %d messages of %d bytes, %d wrong\n", rank, ranks, ROUNDS, SIZE, wrong);
    if (rank == 0)
        fprintf(stderr, "%.0f MB/s\n", 2.0 * ROUNDS * SIZE / seconds / 1e6);
    MPI_Finalize();
    return wrong != 0;
}
