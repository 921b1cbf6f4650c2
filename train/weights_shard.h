/* A base that is split over the ranks: each holds 1/N of the bytes of every layer's linears, as they are packed.
 *
 *   a packed layer:   q | k | v | o | gate | up | down                       in `share`s of 1/N, one a rank
 *   three slots:      the layer in use and the next two, gathered whole      (forward: upwards; backward: downwards)
 *
 * Whatever asks for a linear of layer l makes l + 1 and l + 2 start to arrive, or l - 1 and l - 2 in the backward pass; layers
 * that are still in a slot are not sent again, so that neither the turn from forward to backward nor the start of the next
 * micro-batch waits. Embedding, head, norms and biases lie on every rank. The bytes are never touched by arithmetic: a sharded
 * run gives the bits of one that is not.
 *
 * All ranks must ask for layers in the same order. A rank without a micro-batch walks through the pass instead.
 */
#ifndef NIBBLE_TRAIN_WEIGHTS_SHARD_H
#define NIBBLE_TRAIN_WEIGHTS_SHARD_H

#include "train/comm.h"
#include "train/weights_internal.h"

#define SHARD_SLOTS 3

typedef struct WeightShards {
    Comm *comm;
    int ranks;
    int64_t layers;
    size_t share;  /* of a layer, on each rank: the same for all layers */
    uint8_t **own; /* [layers], share bytes each */
    uint8_t *slot[SHARD_SLOTS];
    float *offsets;              /* [layers, LAYER_LINEARS]: what nested quantization subtracts */
    const Arena *arena, *mirror; /* of own and slot, and their copy on a device */
    int64_t held[SHARD_SLOTS];   /* a layer, or -1 */
    CommWork work[SHARD_SLOTS];
    int64_t layer; /* that was asked for last; -1: none in this pass */
    Pass pass;
    uint64_t gathered; /* layers, ever */
} WeightShards;

/* As weights_take, for a rank of options->ranks. Entries of linears point into slot 0. shards: own, slot and share are filled
 * in (NULL pointers from a counting arena); own is allocated. */
Status shards_take(const ModelConfig *config, WeightEntry *entries, int ranks, Arena *arena, WeightShards *shards,
                   WeightBytes *bytes, Error *err);
/* Rank r reads and quantizes layers r, r + N, …; each then sends every other rank its share of them. Where the weights have a
 * mirror, all of this happens on the device: slots and shares there are filled, and the host's arena is not touched. */
Status shards_read(const TensorFiles *files, ModelWeights *weights, const Backend *backend, Pool *pool, Error *err);
/* Whether the layer's linears are at hand; waits until they are. *shift: to be added to the entries' pointers. */
Status shards_need(WeightShards *shards, int64_t layer, Pass pass, ptrdiff_t *shift, Error *err);
/* The tensor of a linear as it lies in the slots now. */
void shards_moved(const WeightShards *shards, const WeightEntry *entry, int32_t id, ptrdiff_t shift, QuantizedTensor *tensor,
                  const void **data);
void shards_free(WeightShards *shards);

typedef struct ShardWalk {
    Status (*layer_done)(void *self, int32_t layer, Pass pass, Error *err); /* or NULL: as TapeRun.segment_done */
    void *self;
} ShardWalk;
/* Asks for the layers of a pass from `first` on, as a tape would. */
Status shards_walk(WeightShards *shards, int64_t first, Pass pass, int with_backward, const ShardWalk *walk, Error *err);

#endif
